"""Validates settings. Each function in `READERS` converts a value from a file or the environment.
If the value is invalid, it raises ValueError with the expected form.

`files` calls these functions. The names in `READERS` are exactly the settings that users can set,
and each is a field of `Settings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.model import (
    ColdCache,
    ContinuityPolicy,
    MapWhen,
    OnDenied,
    OnExpiry,
    OnLeftover,
    Permissions,
    WhenFull,
)
from perdure.model.durations import duration

if TYPE_CHECKING:
    from perdure.model.forge.rules import Rule
    from perdure.model.forge.sources import Source
    from perdure.model.notices import Channel
    from perdure.model.openid import OpenIdProvider


def _path(value: Any) -> Path:
    try:
        path = Path(_text(value)).expanduser()
    except RuntimeError as error:  # `~name` of an unknown user raises RuntimeError
        raise ValueError("expected an absolute path") from error
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("expected an absolute path")
    return path


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


def _account(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"[\w.-]+:[\w.-]+", text):
        raise ValueError("expected USER:GROUP, by name or number")
    return text


def _store(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"(?:file:///|(?:s3|gs|az|azure|abfss?)://[^@?/]+)[^@?\s]*", text):
        raise ValueError(
            "expected a URL such as file:///directory or s3://bucket/prefix, without credentials"
        )
    return text


def _database(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"(?:postgresql|postgres)://[^\s\0]*", text):
        raise ValueError("expected a URL such as postgresql://user@host/name")
    return text


def _lease(value: Any) -> float:
    seconds = _seconds(value)
    if not 3 <= seconds <= 3600:
        raise ValueError("expected a duration from 3s to 1h")
    return seconds


def _cache(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(
        r"(?:rediss?://[^/?#\s]+(?:/\d{0,4})?|unix://[^?#\s]*/[^?#\s]+)(?:\?[\w=&.%-]*)?", text
    ):
        raise ValueError("expected an address such as redis://host:6379/0 or unix:///path")
    return text


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a duration such as 90s, 15m, 2h or 7d")
    return duration(str(value))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdigit() or not 1 <= int(value) <= 1000:
        raise ValueError("expected a whole number from 1 to 1000")
    return int(value)


def _by_agent(value: Any) -> dict[str, int]:
    """Return limits by agent, from `2` (for every agent), `claude=2,codex=1`, or a table of such
    pairs. Raises ValueError."""
    if isinstance(value, dict):
        pairs = value
    elif "=" in str(value):
        pairs = dict(each.partition("=")[::2] for each in str(value).split(","))
    else:
        pairs = {"*": value}
    found = {}
    for key, jobs in pairs.items():
        name = str(key).strip()
        number = _count(str(jobs).strip()) if not isinstance(jobs, bool) else 0
        if not name or not number:
            raise ValueError("expected a number, or numbers by agent such as claude=2,codex=1")
        found[name] = number
    return found


def _rounds(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdigit() or int(value) > 100:
        raise ValueError("expected a whole number from 0 to 100")
    return int(value)


def _tokens(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}", str(value)) or int(value) < 200:
        raise ValueError("expected a number of tokens from 200 to 999999")
    return int(value)


def _percent(value: Any) -> float:
    found = re.fullmatch(r"(\d{1,2}(?:\.\d{1,3})?)\s*%?", str(value).strip())
    if isinstance(value, bool) or not found:
        raise ValueError("expected a percentage from 0 to 99")
    return float(found[1])


def _level(value: Any) -> float:
    percent = _percent(value)
    if percent < 10:
        raise ValueError("expected a percentage from 10 to 99")
    return percent


def _windows(value: Any) -> str:
    sizes(_text(value))
    return str(value)


def sizes(text: str) -> dict[str, int]:
    """Return window sizes in tokens by pattern of a model name. The form of `text` is
    `pattern=32000, other=200000`. Raises ValueError."""
    found = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, number = map(str.strip, pair.rpartition("="))
        if not name or not number.isdecimal() or not 1000 <= int(number) <= 10**9:
            raise ValueError("expected pairs such as my-model*=32000, separated by commas")
        found[name] = int(number)
    return found


def _bytes(value: Any) -> int:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*(kB|KB|MB|GB|TB)?", str(value).strip())
    if isinstance(value, bool) or not found:
        raise ValueError("expected a size such as 500MB or 2GB")
    return int(
        float(found[1]) * 1024 ** ("", "KB", "MB", "GB", "TB").index((found[2] or "").upper())
    )


def _money(value: Any) -> float:
    try:
        amount = float(value)
    except (TypeError, ValueError, OverflowError):
        amount = -1.0
    if isinstance(value, bool) or not 0 <= amount < 1e6:
        raise ValueError("expected an amount of dollars")
    return amount


def _hosts(value: Any) -> tuple[str, ...]:
    names = value.split() if isinstance(value, str) else value
    if not _are_all(names, r"[A-Za-z0-9._-]{1,253}"):
        raise ValueError("expected host names without port")
    return tuple(names)


def _networks(value: Any) -> tuple[str, ...]:
    from ipaddress import ip_network

    places = value.split() if isinstance(value, str) else value
    if not _are_all(places, r".*"):
        raise ValueError("expected addresses or networks such as 127.0.0.1 and 10.0.0.0/8")
    try:
        return tuple(str(ip_network(place, strict=False)) for place in places)
    except ValueError:
        raise ValueError(
            "expected addresses or networks such as 127.0.0.1 and 10.0.0.0/8"
        ) from None


def _servers(value: Any) -> tuple[str, ...]:
    names = value.split() if isinstance(value, str) else value
    if not _are_all(names, r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?"):
        raise ValueError("expected servers such as git.example.com or 10.0.0.5:3000")
    return tuple(map(str.lower, names))


def _are_all(value: Any, pattern: str) -> bool:
    """Return whether the value is a list of texts that match the pattern as a whole."""
    if not isinstance(value, list):
        return False
    return all(isinstance(each, str) and re.fullmatch(pattern, each) for each in value)


def _mail(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"[A-Za-z0-9._%+=-]{1,64}@[A-Za-z0-9.-]{1,190}", text):
        raise ValueError("expected a mail address such as ada@example.com")
    return text


def _page(value: Any) -> str:
    text = _text(value).rstrip("/")
    if text and not re.fullmatch(
        r"https?://[A-Za-z0-9._:\[\]-]{1,253}(?:/[A-Za-z0-9._~/-]*)?", text
    ):
        raise ValueError("expected an address such as https://perdure.example.com")
    return text


def _sources(value: Any) -> tuple[Source, ...]:
    from perdure.model.forge.sources import sources

    return sources(value)


def _rules(value: Any) -> tuple[Rule, ...]:
    from perdure.model.forge.rules import rules

    return rules(value)


def _channels(value: Any) -> tuple[Channel, ...]:
    from perdure.model.notices import channels

    return channels(value)


def _provider(value: Any) -> OpenIdProvider | None:
    from perdure.model.openid import provider
    from perdure.rules.access import limits_of

    found = provider(value)
    for rule in found.rules if found is not None else ():
        limits_of(rule.repositories, rule.labels)
    return found


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return str(value)

    return check


READERS: dict[str, Callable[[Any], Any]] = {
    "root": _path,
    "state": _path,
    "agent": _text,
    "model": _text,
    "permissions": lambda value: Permissions(_one_of(*Permissions)(value)),
    "continuity": lambda value: ContinuityPolicy(_one_of(*ContinuityPolicy)(value)),
    "attempts": _count,
    "timeout": _seconds,
    "stall": _seconds,
    "grace": _seconds,
    "checkpoint_every": _seconds,
    "checkpoint_ignored": _one_of("small", "all", "none"),
    "spare_workdirs": _rounds,
    "budget_usd": _money,
    "cold_cache": lambda value: ColdCache(_one_of(*ColdCache)(value)),
    "account_jobs": _by_agent,
    "when_full": lambda value: WhenFull(_one_of(*WhenFull)(value)),
    "on_denied": lambda value: OnDenied(_one_of(*OnDenied)(value)),
    "last_word": _one_of("off", "on"),
    "on_leftover": lambda value: OnLeftover(_one_of(*OnLeftover)(value)),
    "full_at": _level,
    "windows": _windows,
    "backend": _one_of("worktree", "isolated"),
    "base": _text,
    "verify": _text,
    "verify_rounds": _rounds,
    "verify_timeout": _seconds,
    "map": lambda value: MapWhen(_one_of(*MapWhen)(value)),
    "map_tokens": _tokens,
    "ca_file": _path,
    **dict.fromkeys(("git_ssh_key", "git_ssh_known_hosts", "git_ssh_config"), _path),
    **dict.fromkeys(
        (
            "gc_workdirs",
            "gc_copies",
            "gc_logs",
            "gc_orphans",
            "gc_checkpoints",
            "gc_caches",
            "gc_scratch",
            "gc_trash",
        ),
        _seconds,
    ),
    "gc_most": _count,
    "disk_warn": _percent,
    "disk_refuse": _percent,
    "disk_refuse_bytes": _bytes,
    "disk_ballast": _bytes,
    "request_expiry": _seconds,
    "session_lifetime": _seconds,
    "session_expiry": lambda value: OnExpiry(_one_of(*OnExpiry)(value)),
    "session_cache": _cache,
    "checkpoint_store": _store,
    "checkpoint_secrets": _one_of("refuse", "leave-out", "allow"),
    "receipts": _one_of("off", "note", "comment", "both"),
    "database": _database,
    "lease": _lease,
    "warm": _one_of("off", "plans", "on"),
    "warm_idle": _seconds,
    "warm_turns": _count,
    "warm_memory": _bytes,
    "warm_most": _count,
    "gc_inbox": _seconds,
    "run_as": _account,
    "serve_listen": _text,
    "serve_public_url": _page,
    "serve_reconcile": _seconds,
    "serve_proxies": _networks,
    "serve_hosts": _hosts,
    "serve_push_contact": _mail,
    "serve_push_hosts": _servers,
    "clone_hosts": _servers,
    "webhooks": _sources,
    "agents": _rules,
    "notify": _channels,
    "openid": _provider,
}

DURATIONS = frozenset(name for name, read in READERS.items() if read in (_seconds, _lease))
"""Names of the settings that are durations. They are written as `2h` and stored in seconds."""
