"""Converts OpenCode's `run --format json` lines into events. Pure. Observed with 1.18.33.

A line is printed when a part is complete, so a tool appears only when it has ended. Tokens are
counted for each step and printed when the tools of the step have ended. Until then, only the start
of the step is known. `step_finish` with the reason `unknown` means that the stream broke off; the
CLI then repeats the request immediately.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from perdure.agents.shared import json_lines
from perdure.agents.shared.calls import question
from perdure.model import Reply, Usage
from perdure.model.events import (
    AgentEvent,
    ReplyCut,
    ReplySeen,
    RetrySeen,
    Said,
    SessionSeen,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    Unrecognised,
    UsageSeen,
)
from perdure.model.requests import OpenCall
from perdure.patterns import late_pattern

SUMMARY = 500
_REASONS = {"length": "max_tokens", "content-filter": "refusal"}
_ASKS = "question"
_OWN = frozenset({"bash", "edit", "task", "webfetch", "websearch", "write"})
"""Tools that a permissions level may remove. Only real tools are listed, because a call of a tool
that never existed is not a denial."""
_DENIED = late_pattern(r"The user (has specified a rule which prevents|rejected permission)")
"""Pattern of the first words in the error for a call that was not allowed."""
_REJECTED = late_pattern(r"The user rejected permission")
"""Pattern of the first words in the error for a call that a person could have allowed."""
OVERFLOW = "ContextOverflow"
TOO_LONG = 413
"""HTTP status that a `RetrySeen` event reports if the request was refused as too long."""
_ARGUMENTS = ("command", "filePath", "pattern", "url", "query", "description", "prompt", "name")
_COLOURS = late_pattern(r"\x1b\[[0-9;]*m")


def parse(line: bytes) -> Sequence[AgentEvent]:
    """Return the events of one line of output. Never raise; an unknown line becomes an
    `Unrecognised` event."""
    if not line.strip():
        return ()
    found = json_lines.read(line) or {}
    part = found.get("part")
    match found.get("type"):
        case "step_start":
            begun_step = Reply(
                id=json_lines.text(json_lines.part(part, "messageID"), SUMMARY), usage=Usage()
            )
            return (
                SessionSeen(json_lines.text(found.get("sessionID"), SUMMARY)),
                ReplySeen(begun_step),
            )
        case "text":
            said = json_lines.text(json_lines.part(part, "text"))
            if said:
                return (Said(said),)
            return ()
        case "tool_use":
            return _tool(part)
        case "step_finish":
            return _finish(part)
        case "error":
            return (
                SessionSeen(json_lines.text(found.get("sessionID"), SUMMARY)),
                *_overflow(found.get("error")),
                _error(found.get("error")),
            )
        case "reasoning":
            return ()
        case _:
            return (Unrecognised(json_lines.text(line.decode("utf-8", "replace"))),)


def begun(part: object) -> ToolStarted:
    """Return the event for the start of a tool call, with the call's command or main argument."""
    given = json_lines.part(part, "state", "input")
    values = given.values() if isinstance(given, dict) else ()
    summary = json_lines.text(json_lines.part(given, "command"), json_lines.COMMAND)
    if not summary:
        named = (json_lines.part(given, argument) for argument in _ARGUMENTS)
        texts = (value for value in (*named, *values) if isinstance(value, str) and value)
        summary = json_lines.text(next(texts, ""), SUMMARY)
    return ToolStarted(
        json_lines.text(json_lines.part(part, "callID"), SUMMARY),
        json_lines.text(json_lines.part(part, "tool"), SUMMARY),
        summary,
    )


def _tool(part: object) -> Sequence[AgentEvent]:
    """Return the events for the start and the end of a tool call. Both come from the same line,
    because the CLI prints a tool call only when it has ended."""
    state, started = json_lines.part(part, "state"), begun(part)
    code = json_lines.part(state, "metadata", "exit")
    ok = json_lines.part(state, "status") == "completed" and not code
    output = json_lines.text(json_lines.part(state, "output"), SUMMARY) or json_lines.text(
        json_lines.part(state, "error"), SUMMARY
    )
    given, error = (
        json_lines.part(state, "input"),
        json_lines.text(json_lines.part(state, "error"), SUMMARY),
    )
    barred = json_lines.text(json_lines.part(given, "tool"), SUMMARY)
    more: tuple[AgentEvent, ...] = ()
    if _ASKS in (started.name, json_lines.part(given, "tool")):
        more = (question(started.tool_id, given),)
    elif started.name == "invalid" and barred in _OWN:
        reason = json_lines.text(json_lines.part(given, "error"))
        more = (ToolDenied(started.tool_id, barred, "", reason=reason),)
    elif json_lines.part(state, "status") == "error" and _DENIED.match(error):
        more = (ToolDenied(started.tool_id, started.name, started.summary, reason=error),)
    return (started, *more, ToolEnded(started.tool_id, ok, output, code=json_lines.exit_code(code)))


def rejected_calls(output: bytes) -> list[OpenCall]:
    """Return the calls in the output that the CLI rejected because a permission was missing."""
    lines = (json_lines.read(line) for line in output.split(b"\n") if b'"tool_use"' in line)
    parts = []
    for each in lines:
        if each and each.get("type") == "tool_use":
            parts.append(each.get("part"))
    return [_open_call(part) for part in parts if _is_rejected(part)]


def _is_rejected(part: object) -> bool:
    error = json_lines.text(json_lines.part(part, "state", "error"), SUMMARY)
    return json_lines.part(part, "state", "status") == "error" and bool(_REJECTED.match(error))


def _open_call(part: object) -> OpenCall:
    started = begun(part)
    given = json_lines.part(part, "state", "input")
    return OpenCall(
        call=started.tool_id,
        tool=started.name,
        input=json.dumps(given, ensure_ascii=False).encode("utf-8", "replace").decode(),
        summary=started.summary,
    )


def _finish(part: object) -> Sequence[AgentEvent]:
    reason = json_lines.text(json_lines.part(part, "reason"), SUMMARY)
    if reason == "unknown":
        return (RetrySeen(detail="the answer broke off"),)
    used = UsageSeen(step_usage(part))
    if reason == "tool-calls":
        return (used,)
    if reason == "stop":
        return (used, TurnEnded(ok=True, turns=1))
    words = f"the model's answer ended with the reason {reason!r}"
    return (
        used,
        ReplyCut(_REASONS.get(reason, reason)),
        TurnEnded(ok=False, text=words, turns=1, facts={"stop_reason": reason}),
    )


def _overflow(error: object) -> Sequence[AgentEvent]:
    """Return a retry event if a request was refused as too long. The turn does not end then: the
    CLI compacts the conversation and repeats the request, without limit if compacting does not
    help."""
    too_long = json_lines.text(json_lines.part(error, "name"), SUMMARY).startswith(OVERFLOW)
    if too_long:
        return (RetrySeen(TOO_LONG, "the conversation is too long for the model"),)
    return ()


def _error(error: object) -> AgentEvent:
    """Return the event for an error that ended the turn. At this point the CLI has already retried,
    without any output."""
    name, status = (
        json_lines.text(json_lines.part(error, "name"), SUMMARY),
        json_lines.whole(json_lines.part(error, "data", "statusCode")),
    )
    words = (
        json_lines.text(json_lines.part(error, "data", "message"))
        or name
        or "an error without a message"
    )
    facts = {key: value for key, value in (("name", name), ("status", str(status or ""))) if value}
    return TurnEnded(ok=False, text=_COLOURS.sub("", words), turns=1, facts=facts)


def step_usage(part: object) -> Usage:
    """Return the usage of one step. OpenCode does not count the cached parts as input. Here `input`
    includes them, as everywhere in perdure."""
    tokens = json_lines.part(part, "tokens")
    cached, written = (
        json_lines.whole(json_lines.part(tokens, "cache", "read")),
        json_lines.whole(json_lines.part(tokens, "cache", "write")),
    )
    return Usage(
        input=json_lines.whole(json_lines.part(tokens, "input")) + cached + written,
        output=json_lines.whole(json_lines.part(tokens, "output"))
        + json_lines.whole(json_lines.part(tokens, "reasoning")),
        cached=cached,
        cache_write=written,
        cost_usd=json_lines.dollars(json_lines.part(part, "cost")),
    )
