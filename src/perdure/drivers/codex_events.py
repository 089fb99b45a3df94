"""Codex's `exec --json` lines as events. Pure. Read from 0.169.0.

Neither an item of type `error` nor a line `error` is a failure; only `turn.failed` is. `usage`
counts over the whole thread, also across resumes and forks, and its input includes the cached part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from perdure.drivers import lines
from perdure.drivers.calls import sandboxed
from perdure.events import (
    AgentEvent,
    LimitSeen,
    RetrySeen,
    Said,
    SessionSeen,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
    Unrecognised,
    UsageSeen,
)
from perdure.model import Usage

SUMMARY = 500
_NO_TOOLS = frozenset({"agent_message", "reasoning", "error", "todo_list", "plan", "user_message"})
_STATUS = re.compile(r"status:? (\d{3})")


def parse(line: bytes) -> Sequence[AgentEvent]:
    """The events of one line; never raises."""
    if not line.strip():
        return ()
    found = lines.read(line) or {}
    match found.get("type"):
        case "thread.started":
            return (SessionSeen(lines.text(found.get("thread_id"), SUMMARY)),)
        case "turn.started":
            return (TurnStarted(),)
        case "item.started" | "item.updated" | "item.completed" as kind:
            item = found.get("item")
            return _item(kind, item) if isinstance(item, dict) else ()
        case "error":
            return _error(lines.text(found.get("message")))
        case "turn.completed":
            return (
                UsageSeen(_usage(found.get("usage")), cumulative=True),
                TurnEnded(ok=True, turns=1),
            )
        case "turn.failed":
            message = lines.text(lines.part(found, "error", "message"))
            limit = (LimitSeen(lines.text(message, SUMMARY)),) if "usage limit" in message else ()
            return (*limit, TurnEnded(ok=False, text=message, turns=1))
        case _:
            return (Unrecognised(lines.text(line.decode("utf-8", "replace"))),)


def _item(kind: str, item: dict[str, Any]) -> Sequence[AgentEvent]:
    name = lines.text(item.get("type"), SUMMARY)
    if name == "agent_message" and kind == "item.completed":
        said = lines.text(item.get("text"))
        return (Said(said),) if said else ()
    if name in _NO_TOOLS or kind == "item.updated":
        return ()
    key = lines.text(item.get("id"), SUMMARY)
    if kind == "item.started":
        return (ToolStarted(key, name, _argument(item)),)
    stopped: Sequence[AgentEvent] = ()
    if item.get("exit_code") and sandboxed(lines.text(item.get("aggregated_output"))):
        stopped = (ToolDenied(key, name, _argument(item), by="sandbox"),)
    ok = (
        item.get("status") in ("completed", None)
        and not item.get("exit_code")
        and not item.get("error")
    )
    output, code = lines.text(item.get("aggregated_output"), SUMMARY), item.get("exit_code")
    return (*stopped, ToolEnded(key, ok, output, code=lines.exit_code(code)))


def _argument(item: dict[str, Any]) -> str:
    """The command, the tool of a server, the search, or the files that change."""
    if changes := lines.items(item.get("changes")):
        return lines.text(", ".join(lines.text(change.get("path")) for change in changes), SUMMARY)
    if tool := lines.text(item.get("tool"), SUMMARY):
        return f"{lines.text(item.get('server'), SUMMARY)}.{tool}".lstrip(".")
    return lines.text(item.get("command"), lines.COMMAND) or lines.text(item.get("query"), SUMMARY)


def _error(message: str) -> Sequence[AgentEvent]:
    """What Codex says before it tries again; its last error is repeated by `turn.failed`."""
    if not message.startswith("Reconnecting"):
        return ()
    status = _STATUS.search(message)
    return (RetrySeen(int(status[1]) if status else None, lines.text(message, SUMMARY)),)


def _usage(used: Any) -> Usage:
    """The input includes its cached parts, as the API counts it."""
    return Usage(
        input=lines.whole(lines.part(used, "input_tokens")),
        output=lines.whole(lines.part(used, "output_tokens")),
        cached=lines.whole(lines.part(used, "cached_input_tokens")),
        cache_write=lines.whole(lines.part(used, "cache_write_input_tokens")),
    )
