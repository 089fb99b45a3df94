"""The settings of a launch of Claude Code: the user's own `--settings` arguments, merged with the
settings that perdure needs. Called by the driver.

Observed with 2.1.329: a second `--settings` replaces the first one, so perdure passes exactly one.
A value that begins with a brace is JSON, and any other value is the path of a file.

Reads the files that the user names, relative to the launch's directory. A file that sets
environment variables may hold secrets, so its content is not copied into a command line. Such a
file is passed on unchanged, so it must already contain the settings that perdure needs.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from perdure.model import Launch

FLAG = "--settings"
KEPT_DAYS = 3650
NEEDED = {"cleanupPeriodDays": KEPT_DAYS}
"""Settings that perdure needs. With the CLI's default for this setting, every run of more than a
few seconds deletes all conversations older than 30 days, including those of other programs."""
_LARGEST = 1 << 20
HOOK = Path(__file__).with_name("hook.py")
MESSAGE_HOOK = Path(__file__).with_name("message_hook.py")
QUESTION = "AskUserQuestion"
AFTER = 'given=$(cat); case "$given" in *"Tool permission request failed"*) printf %s "$given" |'
"""First part of a shell command. It pipes its input into the hook program, but only if a call
needed a permission."""

Settings: TypeAlias = dict[str, object]
"""Content of a settings file of Claude Code, or an object inside one."""


class ClaudeSettings(Struct, frozen=True):
    """The `--settings` argument of a launch, and the user's other arguments."""

    argument: str
    rest: tuple[str, ...]
    """The user's arguments without `--settings`."""
    problem: str = ""
    """Reason why the launch is impossible, in one sentence; empty if it is possible."""
    note: str = ""
    """Sentence that tells which setting of the user is ignored; empty if none is."""


def settings(launch: Launch) -> ClaudeSettings:
    """Return the single `--settings` argument of a launch, and the user's other arguments. If the
    user gave several `--settings`, later ones override earlier ones, key by key. A file that sets
    variables, or that cannot be read, is passed on unchanged."""
    rest, given = _split(launch.spec.agent_args)
    merged: Settings = {}
    for value in given:
        found, problem = _read(value, Path(launch.cwd))
        secret = found is not None and "env" in found and not value.lstrip().startswith("{")
        if secret and not problem and len(given) > 1:
            problem = (
                f"The settings file {value} sets variables, so perdure does not copy it: pass it "
                "as the only --settings."
            )
        if found is None or secret:
            return ClaudeSettings(f"{FLAG}={value}", rest, problem)
        merged = _merged(merged, found)
    days = merged.get("cleanupPeriodDays", KEPT_DAYS)
    enough = isinstance(days, int) and not isinstance(days, bool) and days >= KEPT_DAYS
    note = ""
    if not enough:
        note = (
            f"cleanupPeriodDays {json.dumps(days)} in --settings is not used: it would have "
            "conversations deleted"
        )
    if not (enough and "cleanupPeriodDays" in merged):
        merged = {**merged, **NEEDED}
    if launch.requests:
        merged = {
            **merged,
            "hooks": _with_hooks(merged.get("hooks"), _request_hooks(launch.requests)),
        }
    if launch.messages:
        merged = {
            **merged,
            "hooks": _with_hooks(merged.get("hooks"), _message_hooks(launch.messages)),
        }
    return ClaudeSettings(f"{FLAG}={json.dumps(merged, separators=(',', ':'))}", rest, note=note)


def _request_hooks(directory: str) -> dict[str, list[tuple[str, str]]]:
    """Return the hooks for requests to a person: for each event, pairs of matcher and command.
    Python is started for every question. For other calls it is started only if a call was denied or
    there are answers to look up."""
    program = shlex.join([sys.executable, "-I", "-S", str(HOOK), directory])
    armed = shlex.quote(f"{directory}/armed")
    return {
        "PreToolUse": [
            (QUESTION, program),
            (f"^(?!{QUESTION}$).*", f"[ -e {armed} ] || exit 0; exec {program}"),
        ],
        "PostToolBatch": [("", f"{AFTER} {program};; esac")],
    }


def _message_hooks(directory: str) -> dict[str, list[tuple[str, str]]]:
    """Return the hooks that pass messages to the running turn: for each event, pairs of matcher and
    command. The command starts Python only after a person has sent a message to this attempt."""
    program = shlex.join([sys.executable, "-I", "-S", str(MESSAGE_HOOK), directory])
    armed = shlex.quote(f"{directory}/armed")
    command = f"[ -e {armed} ] || exit 0; exec {program}"
    return {"PostToolBatch": [("", command)], "Stop": [("", command)]}


def _with_hooks(own: object, ours: dict[str, list[tuple[str, str]]]) -> dict[str, object]:
    """Return the user's hooks (`own`), extended by perdure's hooks (`ours`)."""
    hooks: dict[str, object] = dict(own) if isinstance(own, dict) else {}
    for event, entries in ours.items():
        there = hooks.get(event)
        added = []
        for matcher, command in entries:
            added.append({"matcher": matcher, "hooks": [{"type": "command", "command": command}]})
        hooks[event] = [*(there if isinstance(there, list) else []), *added]
    return hooks


def _split(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Split the arguments into those without `--settings` and the values of `--settings`. The value
    may follow as the next argument or after an equals sign. A flag without a value stays in the
    arguments, so that the CLI reports it."""
    rest: list[str] = []
    values: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == FLAG and left:
            values.append(left.pop(0))
        elif argument.startswith(f"{FLAG}="):
            values.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    return tuple(rest), values


def _read(value: str, cwd: Path) -> tuple[Settings | None, str]:
    """Return two things: the settings that one value of `--settings` stands for, and the problem in
    one sentence (empty if there is none). The settings are None if they cannot be read. A missing
    file is not a problem here, because the CLI reports it."""
    if value.lstrip().startswith("{"):
        return _object(value, "The JSON of the argument --settings")
    path = cwd / value
    try:
        if path.stat().st_size > _LARGEST:
            return None, f"The settings file {path} is larger than {_LARGEST} bytes."
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:
        return None, f"The settings file {path} cannot be read: {error}"
    found, problem = _object(text, f"The settings file {path}")
    if found is not None and "env" in found and found.get("cleanupPeriodDays") != KEPT_DAYS:
        needs = (
            f"The settings file {path} sets variables, so perdure does not copy it: it needs "
            f'"cleanupPeriodDays": {KEPT_DAYS}'
        )
        return found, f"{needs} itself, else Claude Code deletes conversations."
    return found, problem


def _object(text: str, what: str) -> tuple[Settings | None, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"{what} is not valid: {error}."
    if not isinstance(found, dict):
        return None, f"{what} is not valid: expected an object."
    return found, ""


def _merged(below: Settings, above: Settings) -> Settings:
    """Return `below` overridden by `above`. Objects that both contain are merged key by key. Any
    other value of `above` replaces that of `below`."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged
