"""Reads the settings from their sources. Called once at each entry point: the command line,
`perdure.open`, a pod.

Precedence, highest first: a flag, the environment (`PERDURE_AGENT`, ...), the project's
`perdure.toml`, the user's `$XDG_CONFIG_HOME/perdure/config.toml`, the default. All problems are
reported at once, each with its line. A project's file comes with the repository and is not trusted:
it may not widen permissions, move perdure's own state, or raise a limit that the user has set.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from perdure.config import Settings
from perdure.config.home import user_home
from perdure.config.passwords import SECRET
from perdure.config.values import READERS
from perdure.errors import ConfigError

NESTED = frozenset({"webhooks", "agents", "notify", "openid"})
"""Tables for which the error message already names the setting that is wrong. The message does not
repeat the whole table, because the table is long, and because people put secrets there by mistake.
"""
PROJECT_FILE = "perdure.toml"
TABLES = ("gc", "disk", "serve")
"""Tables of a settings file whose name becomes a prefix: `trash` in `[gc]` is the setting
`gc_trash`."""

NOT_FOR_PROJECTS = frozenset(
    {
        "account_jobs",
        "cold_cache",
        "root",
        "state",
        "permissions",
        "continuity",
        "on_denied",
        "on_leftover",
        "ca_file",
        "git_ssh_key",
        "git_ssh_known_hosts",
        "git_ssh_config",
        "clone_hosts",
        "session_expiry",
        "session_cache",
        "checkpoint_store",
        "checkpoint_secrets",
        "receipts",
        "database",
        "lease",
        "run_as",
        "webhooks",
        "agents",
        "notify",
        "openid",
    }
) | {name for name in READERS if name.startswith((*(f"{table}_" for table in TABLES), "warm"))}

LIMITS = frozenset({"attempts", "timeout", "stall", "budget_usd", "verify_timeout"})
"""Settings that a project's file may lower but not raise above the user's value. 0 means no limit.
"""


def load(environ: Mapping[str, str], cwd: Path) -> Settings:
    """Return the settings from all sources except flags. Raises ConfigError with the problems of
    all sources."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    user_file = user_settings(environ)
    for file, trusted in ((user_file, True), (_project_file(cwd), False)):
        for key, value, place in _read_file(file, trusted, problems):
            if (
                not trusted
                and key in LIMITS
                and key in values
                and (value or math.inf) > (values[key] or math.inf)
            ):
                problems.append(
                    f"{place}: {key!r} may not be raised by a project above your own, "
                    f"{values[key]:g} ({origin[key]})"
                )
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
    return replace(defaults(environ), **values, origin=origin)


def defaults(environ: Mapping[str, str]) -> Settings:
    """Return the settings that apply if no source sets anything. No file is read."""
    home = user_home(environ)
    return Settings(
        root=_xdg(environ, "XDG_DATA_HOME", home / ".local/share") / "perdure",
        state=_xdg(environ, "XDG_STATE_HOME", home / ".local/state") / "perdure",
    )


def misspelled(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that are probably misspelled names of settings, each with
    the correct name. Only names very similar to a setting's are returned, because agents
    (`PERDURE_ATTEMPT`) and tests have variables of their own."""
    from difflib import get_close_matches

    settings = [f"PERDURE_{key.upper()}" for key in READERS]
    found = {}
    for name in environ:
        if name.startswith("PERDURE_") and name not in (*settings, "PERDURE_ATTEMPT"):
            near = get_close_matches(name, settings, 1, 0.93)
            if near:
                found[name] = near[0]
    return found


def user_settings(environ: Mapping[str, str]) -> Path:
    """Return the path of the user's settings file, whether or not it exists."""
    home = user_home(environ)
    return _xdg(environ, "XDG_CONFIG_HOME", home / ".config") / "perdure" / "config.toml"


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    """Return an XDG base directory. A relative path is invalid and ignored (XDG Base Directory
    Specification 0.8)."""
    path = Path(environ.get(name) or "")
    if path.is_absolute():
        return path
    return default


def _project_file(cwd: Path) -> Path | None:
    """Return the nearest perdure.toml, from `cwd` up to the top of the repository; None if there is
    none."""
    for directory in (cwd, *cwd.parents):
        # Unlike Path.is_file, os.path does not raise for a directory that cannot be read (Python
        # 3.11 to 3.13).
        if os.path.isfile(directory / PROJECT_FILE):  # noqa: PTH113
            return directory / PROJECT_FILE
        if os.path.lexists(directory / ".git"):
            return None
    return None


def _read_file(file: Path | None, trusted: bool, problems: list[str]) -> list[tuple[str, Any, str]]:
    if file is None:
        return []
    try:
        text = file.read_text(encoding="utf-8")
        import tomllib

        table = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError is also the base of the errors of tomllib and of UTF-8 decoding
        problems.append(f"{file}: {error}")
        return []
    found = []
    for key, value in flat(table):
        place = f"{file}:{_line(text, key)}"
        if key not in READERS:
            problems.append(
                f"{place}: there is no setting {key!r}{_near(key)}; perdure config show lists them"
            )
        elif not trusted and key in NOT_FOR_PROJECTS:
            problems.append(
                f"{place}: {key!r} may not be set by a project; put it into your own configuration"
            )
        else:
            try:
                found.append((key, READERS[key](value), place))
            except ValueError as error:
                problems.append(f"{place}: {key}: {error}{_not(key, value)}")
    return found


def _near(key: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, [*READERS, *TABLES], 1)
    if near:
        return f", but there is {near[0]!r}"
    return ""


def _not(key: str, value: Any) -> str:
    if key in SECRET or key in NESTED:
        return ""
    return f", not {value!r}"


def flat(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the settings of a file as pairs of name and value. Keys inside `TABLES` get the
    table's name as a prefix."""
    found = []
    for key, value in table.items():
        if key in TABLES and isinstance(value, dict):
            inner = value
        else:
            inner = None
        if inner is None:
            found.append((key, value))
        else:
            found += [(f"{key}_{name}", each) for name, each in inner.items()]
    return found


def _line(text: str, key: str) -> int:
    """Return the line number of a key, at the top level or in one of `TABLES`. The text is searched
    for the key, because tomllib does not report positions."""
    table = next((table for table in TABLES if key.startswith(f"{table}_")), "")
    names = [key, key.removeprefix(f"{table}_")] if table else [key]
    lines = [*enumerate(text.split("\n"), 1)]
    start = 0
    if table:
        start = _first_match(re.compile(rf"\s*\[\s*{table}\s*\]"), lines) - 1
    pattern = re.compile(rf"^\s*\[*[\"']?(?:{'|'.join(map(re.escape, names))})[\"']?\s*[\]=.]")
    return _first_match(pattern, lines[start:])


def _first_match(pattern: re.Pattern[str], lines: Sequence[tuple[int, str]]) -> int:
    """Return the number of the first line that matches, or 1 if none does."""
    for number, line in lines:
        if pattern.match(line):
            return number
    return 1
