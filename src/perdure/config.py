"""Settings: read once at the door, passed on as a value, never looked up again.

A flag beats the environment (`PERDURE_AGENT`, ...), that beats the project's `perdure.toml`, that beats the user's
`$XDG_CONFIG_HOME/perdure/config.toml`, that beats the default. All problems are reported at once, each with its line.
A project's file comes with the repository and is not trusted: it may not widen permissions, move perdure's own state, or raise
a limit that the user has set.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.durations import duration
from perdure.errors import ConfigError
from perdure.lateclass import dataclass
from perdure.model import ColdCache, ContinuityPolicy, MapWhen, OnExpiry, Permissions, WhenFull

if TYPE_CHECKING:
    from perdure.forges.rules import Rule
    from perdure.forges.sources import Source

PROJECT_FILE = "perdure.toml"
DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What perdure goes by. Durations in seconds; 0 means no limit."""

    root: Path
    """Where workdirs and cache clones lie: `{root}/{service}/.task/{task_id}/`, `{root}/.perdure/`."""
    state: Path
    """Where the database, the attempts' logs and the transcripts' copies lie."""
    agent: str = "claude"
    model: str = ""
    permissions: Permissions = Permissions.EDIT
    continuity: ContinuityPolicy = ContinuityPolicy.DISCLOSE
    attempts: int = 3
    timeout: float = 3600.0
    stall: float = 600.0
    grace: float = 10.0
    """Between the polite and the final end of an agent."""
    checkpoint_every: float = 20.0
    """At least so long between two checkpoints while an agent works."""
    checkpoint_ignored: str = "small"
    """Which ignored files a checkpoint has."""
    budget_usd: float = 0.0
    cold_cache: ColdCache = ColdCache.RESUME
    """What follows when a conversation was left alone for so long that all of it has to be read anew."""
    account_jobs: Mapping[str, int] = field(default_factory=dict)
    """How many runs may be at work on one account at once, by agent."""
    when_full: WhenFull = WhenFull.COMPACT
    """What happens when a conversation is nearly too long for its model."""
    full_at: float = 80.0
    """Percent of the model's window at which it is."""
    windows: str = ""
    """What models take, in tokens, where perdure is to know better: `my-model*=32000, other=200000`."""
    backend: str = ""
    base: str = ""
    verify: str = ""
    verify_rounds: int = 3
    """So often a failed check goes back to the agent."""
    verify_timeout: float = 1800.0
    map: MapWhen = MapWhen.FALLBACK
    """Which prompts get the project map."""
    map_tokens: int = 2000
    """The most that it takes, by the estimate of `projectmap.estimate`."""
    ca_file: Path | None = None
    """Certificates that the forge's https is checked against, instead of the system's."""
    gc_workdirs: float = 14 * DAY
    """How long something must have been left alone before the sweeper takes it; one age for each class."""
    gc_copies: float = 180 * DAY
    gc_logs: float = 90 * DAY
    gc_orphans: float = 7 * DAY
    gc_checkpoints: float = 30 * DAY
    gc_caches: float = 90 * DAY
    gc_scratch: float = 2 * DAY
    gc_trash: float = 7 * DAY
    """The grace in the trash, of what was proven to be saved elsewhere."""
    gc_most: int = 200
    """Of one class, at once."""
    disk_warn: float = 15.0
    """Percent of a volume that are free."""
    disk_refuse: float = 10.0
    disk_refuse_bytes: int = 2 * 1024**3
    """New work is refused when less than both of these is free."""
    disk_ballast: int = 64 * 1024**2
    session_lifetime: float = 0.0
    """A session expires when it was not used for so long."""
    session_expiry: OnExpiry = OnExpiry.RESUME
    """What follows then, where the transcript is there."""
    session_cache: str = ""
    """A Redis in front of the sessions' table, for those who look them up."""
    checkpoint_store: str = ""
    """Where every checkpoint is brought as well (file:///…, s3://…, gs://…, az://…), so that another machine can go on."""
    checkpoint_secrets: str = "refuse"
    """What happens to a checkpoint with a known secret in it: `refuse`, `leave-out` (and replace what was said), or `allow`."""
    database: str = ""
    """postgresql://USER@HOST:PORT/NAME: runs and conversations are kept there, for several hosts, and not in the state directory."""
    lease: float = 60.0
    """How long a host that is not heard of keeps an attempt, where the database is shared. All hosts need the same."""
    warm: str = "plans"
    """Which agents are kept between attempts, where they can be: `off`, `plans` (those of plans) or `on` (all)."""
    warm_idle: float = 300.0
    """A kept agent is ended when it has waited so long."""
    warm_turns: int = 50
    """Attempts that one process serves at most."""
    warm_memory: int = 2 * 1024**3
    """Bytes resident, of the agent and all below it, between two attempts; 0 is no limit."""
    warm_most: int = 4
    """Agents that one perdure keeps waiting at once."""
    gc_inbox: float = 30 * DAY
    """How long the body of a settled delivery is kept; that it was here, a year."""
    clone_hosts: tuple[str, ...] = ()
    """Servers that repositories may be fetched from, as `host` or `host:port`: only these; empty is any. A pool that works for others
    fetches from private addresses only where this, or a rule's `clone`, names the server."""
    serve_listen: str = "127.0.0.1:8420"
    serve_public_url: str = ""
    """Where people open the dashboard, for links in what is told on a forge; no slash at its end."""
    serve_reconcile: float = 300.0
    """So often forges are asked what was missed; 0: never."""
    serve_hosts: tuple[str, ...] = ()
    """Names under which `perdure serve` is asked, besides those of loopback."""
    webhooks: tuple[Source, ...] = ()
    agents: tuple[Rule, ...] = ()
    """Who works on what, for whom: see `forges.rules`."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Where each setting that is not a default came from."""


def without_password(address: str) -> str:
    """An address as it may be shown: without user, password and parameters."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


def _path(value: Any) -> Path:
    try:
        path = Path(_text(value)).expanduser()
    except RuntimeError as error:  # `~somebody`, of whom the system knows nothing
        raise ValueError("an absolute path is needed") from error
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("an absolute path is needed")
    return path


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is needed")
    return value


def _store(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"(?:file:///|(?:s3|gs|az|azure|abfss?)://[^@?/]+)[^@?\s]*", text):
        raise ValueError("a URL such as file:///directory or s3://bucket/prefix is needed, without credentials")
    return text


def _database(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"(?:postgresql|postgres)://[^\s\0]*", text):
        raise ValueError("a URL such as postgresql://user@host/name is needed")
    return text


def _lease(value: Any) -> float:
    seconds = _seconds(value)
    if not 3 <= seconds <= 3600:
        raise ValueError("a duration from 3s to 1h is needed")
    return seconds


def _cache(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"(?:rediss?://[^/?#\s]+(?:/\d{0,4})?|unix://[^?#\s]*/[^?#\s]+)(?:\?[\w=&.%-]*)?", text):
        raise ValueError("an address such as redis://host:6379/0 or unix:///path is needed")
    return text


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a duration such as 90s, 15m or 2h is needed")
    return duration(str(value))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdigit() or not 1 <= int(value) <= 1000:
        raise ValueError("a whole number from 1 to 1000 is needed")
    return int(value)


def _by_agent(value: Any) -> dict[str, int]:
    """`2` for every agent, `claude=2,codex=1`, or a table of the same."""
    pairs = (
        value
        if isinstance(value, dict)
        else dict(each.partition("=")[::2] for each in str(value).split(","))
        if "=" in str(value)
        else {"*": value}
    )
    found = {str(name).strip(): _count(str(jobs).strip()) if not isinstance(jobs, bool) else 0 for name, jobs in pairs.items()}
    if not all(name and jobs for name, jobs in found.items()):
        raise ValueError("a number, or numbers by agent such as claude=2,codex=1, are needed")
    return found


def _rounds(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdigit() or int(value) > 100:
        raise ValueError("a whole number from 0 to 100 is needed")
    return int(value)


def _tokens(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}", str(value)) or int(value) < 200:
        raise ValueError("a number of tokens from 200 to 999999 is needed")
    return int(value)


def _percent(value: Any) -> float:
    found = re.fullmatch(r"(\d{1,2}(?:\.\d{1,3})?)\s*%?", str(value).strip())
    if isinstance(value, bool) or not found:
        raise ValueError("a percentage from 0 to 99 is needed")
    return float(found[1])


def _level(value: Any) -> float:
    percent = _percent(value)
    if percent < 10:
        raise ValueError("a percentage from 10 to 99 is needed")
    return percent


def _windows(value: Any) -> str:
    sizes(_text(value))
    return str(value)


def sizes(text: str) -> dict[str, int]:
    """Tokens by the pattern of a model's name, from `pattern=32000, other=200000`. Raises ValueError."""
    found = {}
    for pair in filter(None, (each.strip() for each in text.split(","))):
        name, _, number = (part.strip() for part in pair.rpartition("="))
        if not name or not number.isdecimal() or not 1000 <= int(number) <= 10**9:
            raise ValueError("pairs such as my-model*=32000, separated by commas, are needed")
        found[name] = int(number)
    return found


def _bytes(value: Any) -> int:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*(kB|KB|MB|GB|TB)?", str(value).strip())
    if isinstance(value, bool) or not found:
        raise ValueError("a size such as 500MB or 2GB is needed")
    return int(float(found[1]) * 1024 ** ("", "KB", "MB", "GB", "TB").index((found[2] or "").upper()))


def _money(value: Any) -> float:
    try:
        amount = float(value)
    except (TypeError, ValueError, OverflowError):
        amount = -1.0
    if isinstance(value, bool) or not 0 <= amount < 1e6:
        raise ValueError("an amount of dollars is needed")
    return amount


def _hosts(value: Any) -> tuple[str, ...]:
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,253}", name) for name in names):
        raise ValueError("host names are needed, without port")
    return tuple(names)


def _servers(value: Any) -> tuple[str, ...]:
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list) or not all(
        isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?", name) for name in names
    ):
        raise ValueError("servers such as git.example.com or 10.0.0.5:3000 are needed")
    return tuple(name.lower() for name in names)


def _page(value: Any) -> str:
    text = _text(value).rstrip("/")
    if text and not re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]{1,253}(?:/[A-Za-z0-9._~/-]*)?", text):
        raise ValueError("an address such as https://perdure.example.com is needed")
    return text


def _sources(value: Any) -> tuple[Source, ...]:
    from perdure.forges.sources import sources

    return sources(value)


def _rules(value: Any) -> tuple[Rule, ...]:
    from perdure.forges.rules import rules

    return rules(value)


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)} is needed")
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
    "budget_usd": _money,
    "cold_cache": lambda value: ColdCache(_one_of(*ColdCache)(value)),
    "account_jobs": _by_agent,
    "when_full": lambda value: WhenFull(_one_of(*WhenFull)(value)),
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
    **dict.fromkeys(
        ("gc_workdirs", "gc_copies", "gc_logs", "gc_orphans", "gc_checkpoints", "gc_caches", "gc_scratch", "gc_trash"), _seconds
    ),
    "gc_most": _count,
    "disk_warn": _percent,
    "disk_refuse": _percent,
    "disk_refuse_bytes": _bytes,
    "disk_ballast": _bytes,
    "session_lifetime": _seconds,
    "session_expiry": lambda value: OnExpiry(_one_of(*OnExpiry)(value)),
    "session_cache": _cache,
    "checkpoint_store": _store,
    "checkpoint_secrets": _one_of("refuse", "leave-out", "allow"),
    "database": _database,
    "lease": _lease,
    "warm": _one_of("off", "plans", "on"),
    "warm_idle": _seconds,
    "warm_turns": _count,
    "warm_memory": _bytes,
    "warm_most": _count,
    "gc_inbox": _seconds,
    "serve_listen": _text,
    "serve_public_url": _page,
    "serve_reconcile": _seconds,
    "serve_hosts": _hosts,
    "clone_hosts": _servers,
    "webhooks": _sources,
    "agents": _rules,
}

SECRET = frozenset({"database", "session_cache"})
"""Settings that may hold a password: where they cannot be read, their text is not repeated."""

TABLES = ("gc", "disk", "serve")
"""`[gc]` with `trash = "7d"` in a file is the setting `gc_trash`."""

NOT_FOR_PROJECTS = frozenset(
    {
        "account_jobs",
        "cold_cache",
        "root",
        "state",
        "permissions",
        "continuity",
        "ca_file",
        "clone_hosts",
        "session_expiry",
        "session_cache",
        "checkpoint_store",
        "checkpoint_secrets",
        "database",
        "lease",
        "webhooks",
        "agents",
    }
) | {name for name in READERS if name.startswith((*(f"{table}_" for table in TABLES), "warm"))}


LIMITS = frozenset({"attempts", "timeout", "stall", "budget_usd", "verify_timeout"})
"""What a project may lower, and not raise above what the user has set; 0 is no limit."""


def load(environ: Mapping[str, str], cwd: Path) -> Settings:
    """The settings of one invocation, flags aside. Raises ConfigError with every problem of every source."""
    home = Path(environ.get("HOME") or "/")
    problems: list[str] = []
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    user_file = _xdg(environ, "XDG_CONFIG_HOME", home / ".config") / "perdure" / "config.toml"
    for file, trusted in ((user_file, True), (_project_file(cwd), False)):
        for key, value, place in _read_file(file, trusted, problems):
            if not trusted and key in LIMITS and key in values and (value or math.inf) > (values[key] or math.inf):
                problems.append(f"{place}: {key!r} may not be raised by a project above your own, {values[key]:g} ({origin[key]})")
                continue
            values[key], origin[key] = value, place
    for key, read in READERS.items():
        name = f"PERDURE_{key.upper()}"
        if environ.get(name):
            try:
                values[key], origin[key] = read(environ[name]), name
            except ValueError as error:
                problems.append(f"{name}: {error}{_not(key, environ[name])}")
    if problems:
        raise ConfigError(problems, "perdure doctor shows what is in force")
    start = Settings(
        root=_xdg(environ, "XDG_DATA_HOME", home / ".local/share") / "perdure",
        state=_xdg(environ, "XDG_STATE_HOME", home / ".local/state") / "perdure",
    )
    return replace(start, **values, origin=origin)


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    """The XDG base directory; a relative one is invalid and ignored, as the specification (0.8) says."""
    path = Path(environ.get(name) or "")
    return path if path.is_absolute() else default


def _project_file(cwd: Path) -> Path | None:
    """The nearest perdure.toml from here up to the top of the repository."""
    for directory in (cwd, *cwd.parents):
        if (directory / PROJECT_FILE).is_file():
            return directory / PROJECT_FILE
        if (directory / ".git").exists():
            return None
    return None


def _read_file(file: Path | None, trusted: bool, problems: list[str]) -> list[tuple[str, Any, str]]:
    if file is None:
        return []
    try:
        text = file.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, RecursionError) as error:  # tomllib's own errors and those of UTF-8 are ValueErrors
        problems.append(f"{file}: {error}")
        return []
    found = []
    for key, value in flat(table):
        place = f"{file}:{_line(text, key)}"
        if key not in READERS:
            problems.append(f"{place}: there is no setting {key!r}; known are {', '.join(READERS)}")
        elif not trusted and key in NOT_FOR_PROJECTS:
            problems.append(f"{place}: {key!r} may not be set by a project; put it into your own configuration")
        else:
            try:
                found.append((key, READERS[key](value), place))
            except ValueError as error:
                problems.append(f"{place}: {key}: {error}{_not(key, value)}")
    return found


def _not(key: str, value: Any) -> str:
    return "" if key in SECRET else f", not {value!r}"


def shown(name: str, value: Any) -> Any:
    """A setting's value as it may be printed: of an address, without its password."""
    if name not in SECRET:
        return value
    return re.sub(r"(://[^/?#\s]*?:)[^/?#\s]*@", r"\1***@", re.sub(r"((?:ssl)?password=)[^&#\s]*", r"\1***", str(value)))


def password(address: str) -> str:
    """The password in an address, or empty."""
    from urllib.parse import parse_qs, unquote

    found = re.match(r"[a-z]+://[^/?#\s]*?:([^/?#\s]*)@", address)
    return unquote(found[1]) if found else parse_qs(address.partition("?")[2]).get("password", [""])[0]


def flat(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A settings file's keys and values, those of our tables under their full names."""
    found = []
    for key, value in table.items():
        inner = value if key in TABLES and isinstance(value, dict) else None
        found += [(key, value)] if inner is None else [(f"{key}_{name}", each) for name, each in inner.items()]
    return found


def _line(text: str, key: str) -> int:
    """The line on which a key stands, at the top or in a table of ours; tomllib does not tell."""
    table = next((table for table in TABLES if key.startswith(f"{table}_")), "")
    names = [key, key.removeprefix(f"{table}_")] if table else [key]
    lines = [*enumerate(text.split("\n"), 1)]
    start = next((at for at, (_, line) in enumerate(lines) if table and re.match(rf"\s*\[\s*{table}\s*\]", line)), 0)
    pattern = re.compile(rf"^\s*\[*[\"']?(?:{'|'.join(map(re.escape, names))})[\"']?\s*[\]=.]")
    return next((number for number, line in lines[start:] if pattern.match(line)), 1)
