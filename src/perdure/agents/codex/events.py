"""Converts Codex's `exec --json` lines into events. Pure. Observed with 0.169.0.

Only `turn.failed` is a failure; an item or a line of type `error` is not. `usage` counts the whole
thread, also across resumes and forks. Its input includes the cached part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.agents.shared import json_lines
from perdure.agents.shared.calls import last_word
from perdure.model import Usage
from perdure.model.events import (
    AgentEvent,
    LimitSeen,
    RetrySeen,
    Said,
    SessionSeen,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
    Unrecognised,
    UsageSeen,
)
from perdure.patterns import late_pattern

SUMMARY = 500
_NO_TOOLS = frozenset({"agent_message", "reasoning", "error", "todo_list", "plan", "user_message"})
_STATUS = late_pattern(r"status:? (\d{3})")


def parse(line: bytes) -> Sequence[AgentEvent]:
    """Return the events of one line of output. Never raise; an unknown line becomes an
    `Unrecognised` event."""
    if not line.strip():
        return ()
    found = json_lines.read(line) or {}
    match found.get("type"):
        case "thread.started":
            return (SessionSeen(json_lines.text(found.get("thread_id"), SUMMARY)),)
        case "turn.started":
            return (TurnStarted(),)
        case "item.started" | "item.updated" | "item.completed" as kind:
            item = found.get("item")
            if isinstance(item, dict):
                return _item(kind, item)
            return ()
        case "error":
            return _error(json_lines.text(found.get("message")))
        case "turn.completed":
            return (
                UsageSeen(_usage(found.get("usage")), cumulative=True),
                TurnEnded(ok=True, turns=1),
            )
        case "turn.failed":
            message = json_lines.text(json_lines.part(found, "error", "message"))
            limit = (
                (LimitSeen(json_lines.text(message, SUMMARY)),) if "usage limit" in message else ()
            )
            return (*limit, TurnEnded(ok=False, text=message, turns=1))
        case _:
            return (Unrecognised(json_lines.text(line.decode("utf-8", "replace"))),)


def _item(kind: str, item: Mapping[str, object]) -> Sequence[AgentEvent]:
    name = json_lines.text(item.get("type"), SUMMARY)
    if name == "agent_message" and kind == "item.completed":
        said = json_lines.text(item.get("text"))
        # The answer may be the agent's last word, a JSON object in a requested form. 0.169.0 also
        # accepts answers that do not have this form.
        if said.startswith("{"):
            word = last_word(json_lines.read(said.encode()))
        else:
            word = None
        if word is not None:
            return (Said(word.summary or said), word)
        if said:
            return (Said(said),)
        return ()
    if name in _NO_TOOLS or kind == "item.updated":
        return ()
    key = json_lines.text(item.get("id"), SUMMARY)
    if kind == "item.started":
        return (ToolStarted(key, name, _argument(item)),)
    ok = (
        item.get("status") in ("completed", None)
        and not item.get("exit_code")
        and not item.get("error")
    )
    output, code = json_lines.text(item.get("aggregated_output"), SUMMARY), item.get("exit_code")
    return (ToolEnded(key, ok, output, code=json_lines.exit_code(code)),)


def _argument(item: Mapping[str, object]) -> str:
    """Return the main argument of a call: the command, the tool of an MCP server, the search query,
    or the changed files."""
    if changes := json_lines.items(item.get("changes")):
        return json_lines.text(
            ", ".join(json_lines.text(change.get("path")) for change in changes), SUMMARY
        )
    if tool := json_lines.text(item.get("tool"), SUMMARY):
        return f"{json_lines.text(item.get('server'), SUMMARY)}.{tool}".lstrip(".")
    return json_lines.text(item.get("command"), json_lines.COMMAND) or json_lines.text(
        item.get("query"), SUMMARY
    )


def _error(message: str) -> Sequence[AgentEvent]:
    """Return a retry event if the message announces that Codex tries again. Return nothing for any
    other error, because `turn.failed` repeats the last error."""
    if not message.startswith("Reconnecting"):
        return ()
    status = _STATUS.search(message)
    return (RetrySeen(int(status[1]) if status else None, json_lines.text(message, SUMMARY)),)


def _usage(used: object) -> Usage:
    """Return the thread's token counts, as a turn's last line reports them. The API already counts
    the cached parts as input, so nothing is added."""
    return Usage(
        input=json_lines.whole(json_lines.part(used, "input_tokens")),
        output=json_lines.whole(json_lines.part(used, "output_tokens")),
        cached=json_lines.whole(json_lines.part(used, "cached_input_tokens")),
        cache_write=json_lines.whole(json_lines.part(used, "cache_write_input_tokens")),
    )
