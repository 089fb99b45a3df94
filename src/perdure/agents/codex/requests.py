"""Finds Codex's calls that a person may allow or answer: commands that its sandbox or its rules
stopped, and questions. Pure; written against 0.169.0.

A call is identified by the command, its directory, and the fact that it runs without the sandbox.
An approval request of the app server contains the same three if the model itself asked to run the
command outside the sandbox (`sandbox_permissions`). Codex requests no approval for a command that
failed in the sandbox.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping

# Type checkers treat this name as true. At run time it is false: the bridge imports this file, and
# importing the model would take long.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from perdure.model.requests import OpenCall

COMMANDS = {"exec_command": "cmd", "shell_command": "command"}
"""Tools that run a command, each with the name of the argument that holds the command."""
ESCALATED = "require_escalated"
SHELLS = frozenset({"bash", "sh", "zsh"})
_PLACES = frozenset({"/bin", "/usr/bin", "/usr/local/bin"})
_OTHERS = frozenset(
    """
    cmd command workdir justification sandbox_permissions prefix_rule login tty
    yield_time_ms max_output_tokens timeout_ms
    """.split()
)
"""Arguments that a plain command may have. No other argument is allowed, because it could change
what runs."""
_QUESTION = "request_user_input"
_ASKS = "AskUserQuestion"
"""Tool name under which perdure stores the questions of every agent. Codex's own name for the tool
is in `_QUESTION`."""


def call_of(tool: str, command: str, directory: str) -> dict[str, str]:
    """Return the arguments that identify a command. They are the same if the model later repeats a
    call that a person allowed."""
    return {
        COMMANDS[tool]: command,
        "workdir": os.path.normpath(directory),
        "sandbox_permissions": ESCALATED,
    }


def asked_by_server(told: Mapping[str, object]) -> list[tuple[str, dict[str, str]]]:
    """Return the calls that match an approval request of the app server, one for each tool that
    runs commands. Empty if the request is for more than a command, or if the command runs in an
    unknown shell."""
    if any(map(told.get, ("networkApprovalContext", "additionalPermissions"))):
        return []
    try:
        shell, flag, command = shlex.split(str(told.get("command") or ""))
    except ValueError:
        return []
    place, _, name = shell.rpartition("/")
    if name not in SHELLS or place not in _PLACES or flag not in ("-c", "-lc"):
        return []
    directory = str(told.get("cwd") or "")
    return [(tool, call_of(tool, command, directory)) for tool in COMMANDS]


def open_calls(content: bytes) -> list[OpenCall]:
    """Return the calls that a person may allow and the questions that a person may answer. Only
    those after the newest prompt of the rollout are returned."""
    from perdure.agents.codex.unprinted_calls import unprinted
    from perdure.agents.shared import json_lines
    from perdure.model.events import QuestionAsked, ToolDenied
    from perdure.model.requests import OpenCall

    ended = {}
    for each in unprinted(content):
        if isinstance(each, ToolDenied | QuestionAsked):
            ended[each.tool_id] = each
    found: dict[str, OpenCall] = {}
    cwd = ""
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if b'"turn_context"' in line or b"call_id" in line else None
        if entry is None:
            continue
        item = json_lines.part(entry, "payload")
        if entry.get("type") == "turn_context":
            cwd = json_lines.text(json_lines.part(item, "cwd"))
        key = json_lines.text(json_lines.part(item, "call_id"))
        if key not in ended or json_lines.part(item, "type") != "function_call":
            continue
        tool = json_lines.text(json_lines.part(item, "name"))
        given = json_lines.read(str(json_lines.part(item, "arguments") or "").encode()) or {}
        summary = getattr(ended[key], "summary", "")
        arguments = given if tool == _QUESTION else _command(tool, given, cwd)
        if arguments is not None:
            found[key] = OpenCall(
                call=key,
                tool=_ASKS if tool == _QUESTION else tool,
                input=_text(arguments),
                summary=summary,
            )
    return list(found.values())


def _text(arguments: Mapping[str, object]) -> str:
    return json.dumps(arguments, ensure_ascii=False).encode("utf-8", "replace").decode()


def _command(tool: str, given: Mapping[str, object], cwd: str) -> dict[str, str] | None:
    """Return the arguments by which an approval identifies this call. None if the call is not a
    plain command."""
    from pathlib import PurePath

    command = given.get(COMMANDS.get(tool, ""))
    directory = given.get("workdir") or ""
    plain = isinstance(command, str) and isinstance(directory, str) and set(given) <= _OTHERS
    if not plain or given.get("sandbox_permissions") not in (None, "use_default", ESCALATED):
        return None
    return call_of(tool, str(command), str(PurePath(cwd, str(directory))))
