"""Converts the lines of `acp_bridge` into events. Pure; written against version 1 of the protocol.

An agent reports its usage at the end of a turn and only for that turn, if at all. Its text arrives
in pieces. Agents use different fields for the command of a tool call, so several are searched.

`open_calls` finds the tool calls for which the agent requested a permission and did not get it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import OutputLine
from perdure.model import Permissions, Usage
from perdure.model.events import (
    AgentEvent,
    ItemsMarked,
    RetrySeen,
    SaidPart,
    SessionSeen,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
    Unrecognised,
    UsageSeen,
)
from perdure.model.requests import OpenCall

SUMMARY = 500
_HINTS = {
    "read": "reads",
    "search": "reads",
    "fetch": "reads",
    "think": "reads",
    "edit": "edits",
    "delete": "edits",
    "move": "edits",
    "execute": "runs",
}
"""Effect (`reads`, `edits`, `runs`) that each kind of ACP tool call has. The kind `other` is
missing, because it tells nothing about the effect."""


def parse(line: bytes) -> Sequence[AgentEvent]:
    """Return the events of one line of output. Never raise; an unknown line becomes an
    `Unrecognised` event."""
    if not line.strip():
        return ()
    found = json_lines.read(line) or {}
    match found.get("type"):
        case "session":
            return (_session(found),)
        case "marks":
            return _marked(found)
        case "prompted":
            return (TurnStarted(),)
        case "tool":
            return (_started(found.get("call")),)
        case "update":
            return _update(found.get("update"))
        case "again":
            return (RetrySeen(detail="the answer broke off"),)
        case "asked":
            return _asked(found)
        case "notice":
            return ()
        case "end":
            return _end(found)
        case "error":
            return (_error(found),)
        case _:
            return (Unrecognised(json_lines.text(line.decode("utf-8", "replace"))),)


def _session(found: OutputLine) -> SessionSeen:
    replayed = found.get("replayed")
    return SessionSeen(
        json_lines.text(found.get("session"), SUMMARY),
        version=json_lines.text(found.get("version"), SUMMARY),
        opened=json_lines.text(found.get("opened"), SUMMARY),
        replayed=replayed if isinstance(replayed, int) else None,
    )


def _marked(found: OutputLine) -> Sequence[AgentEvent]:
    marks, session = found.get("marks"), json_lines.text(found.get("session"), SUMMARY)
    if not isinstance(marks, list) or not session:
        return ()
    return (
        ItemsMarked(
            session,
            tuple(json_lines.text(mark, SUMMARY) for mark in marks),
            ended=found.get("ended") is True,
        ),
    )


def _asked(found: OutputLine) -> Sequence[AgentEvent]:
    """Return a `ToolDenied` event if the permission request was not granted, else nothing."""
    if found.get("granted") is not False:
        return ()
    title = json_lines.text(found.get("title"), SUMMARY)
    return (ToolDenied(json_lines.text(found.get("tool"), SUMMARY), "tool", title),)


def _started(call: object) -> ToolStarted:
    name = "tool"
    for key in ("name", "kind", "title"):
        if word := json_lines.text(json_lines.part(call, key), SUMMARY):
            name = word
            break
    command = json_lines.part(call, "rawInput", "command")
    if isinstance(command, list):
        words = " ".join(word for word in command if isinstance(word, str))
    else:
        words = json_lines.text(command, json_lines.COMMAND)
    return ToolStarted(
        _id(call),
        name,
        json_lines.text(words, json_lines.COMMAND)
        or json_lines.text(json_lines.part(call, "title"), SUMMARY),
        hint=_HINTS.get(json_lines.text(json_lines.part(call, "kind"), SUMMARY), ""),
    )


def _id(call: object) -> str:
    return json_lines.text(json_lines.part(call, "toolCallId"), SUMMARY)


def _update(update: object) -> Sequence[AgentEvent]:
    kind, status = json_lines.part(update, "sessionUpdate"), json_lines.part(update, "status")
    if kind == "agent_message_chunk":
        said = json_lines.text(json_lines.part(update, "content", "text"))
        if said:
            return (SaidPart(said),)
        return ()
    if kind in ("tool_call", "tool_call_update") and status in ("completed", "failed"):
        told = json_lines.part(update, "_meta", "terminal_exit", "exit_code")
        if told is not None:
            code = told
        else:
            code = json_lines.part(update, "rawOutput", "metadata", "exit")
        ok = status == "completed" and not code
        ended = ToolEnded(_id(update), ok, _output(update), code=json_lines.exit_code(code))
        return (ended,)
    return ()


def _output(update: object) -> str:
    raw = json_lines.text(json_lines.part(update, "rawOutput", "output"), SUMMARY)
    if raw:
        return raw
    for item in json_lines.items(json_lines.part(update, "content")):
        if words := json_lines.text(json_lines.part(item, "content", "text"), SUMMARY):
            return words
    return ""


def _end(found: OutputLine) -> Sequence[AgentEvent]:
    used = (UsageSeen(_usage(found["usage"])),) if isinstance(found.get("usage"), dict) else ()
    stop = json_lines.text(found.get("stop"), SUMMARY)
    ok = stop == "end_turn" or found.get("over") is True
    return (
        *used,
        TurnEnded(
            ok=ok,
            text="" if ok else f"the turn ended with the reason {stop!r}",
            turns=1,
            facts={"stop": stop},
        ),
    )


def _usage(used: object) -> Usage:
    """Return the usage of one turn. ACP agents do not count the cached parts as input. Here `input`
    includes them, as everywhere in perdure. `output` includes the model's thoughts. Some agents,
    such as OpenCode 1.18.33, report thoughts separately from the output. The total that such an
    agent reports is at least the sum of all counts. Only in this case are the thoughts added to the
    output."""
    cached, written = (
        json_lines.whole(json_lines.part(used, "cachedReadTokens")),
        json_lines.whole(json_lines.part(used, "cachedWriteTokens")),
    )
    carried = json_lines.whole(json_lines.part(used, "inputTokens")) + cached + written
    output = json_lines.whole(json_lines.part(used, "outputTokens"))
    thoughts = json_lines.whole(json_lines.part(used, "thoughtTokens"))
    if json_lines.whole(json_lines.part(used, "totalTokens")) >= carried + output + thoughts:
        output += thoughts
    return Usage(
        input=carried,
        output=output,
        cached=cached,
        cache_write=written,
    )


def _error(found: OutputLine) -> TurnEnded:
    """Return the end of a failed turn. Its text is the agent's message, followed by the details in
    the field `data` of the error."""
    told = {json_lines.text(found.get("message")): None}
    for key in ("details", "message", "errorName", "codexErrorInfo"):
        told[json_lines.text(json_lines.part(found, "data", key), SUMMARY)] = None
    words = ": ".join(filter(None, told))
    code = found.get("code")
    facts = {
        "stage": json_lines.text(found.get("stage"), SUMMARY),
        "code": str(code) if isinstance(code, int) else "0",
    }
    if found.get("missing") is True:
        facts["missing"] = "yes"
    if found.get("lacking") is True:
        facts["lacking"] = "yes"
    return TurnEnded(ok=False, text=words or "an error without a message", turns=1, facts=facts)


def may_ask(level: Permissions, allow: str) -> bool:
    """Return whether a person can allow calls that the bridge would deny. True only at the level
    `edit`, unless the bridge grants every call anyway."""
    return level is Permissions.EDIT and allow != "anything"


def open_calls(output: bytes) -> list[OpenCall]:
    """Return the tool calls in the bridge's output for which a permission was requested and not
    granted."""
    lines = (json_lines.read(line) for line in output.split(b"\n") if b'"asked"' in line)
    asked = [each for each in lines if each and each.get("type") == "asked"]
    return [_call(each) for each in asked if each.get("granted") is False]


def _call(asked: OutputLine) -> OpenCall:
    given = asked.get("input")
    command = json_lines.text(json_lines.part(given, "command"), SUMMARY)
    return OpenCall(
        call=json_lines.text(asked.get("tool"), SUMMARY),
        tool=json_lines.text(asked.get("name"), SUMMARY),
        input=json.dumps(given, ensure_ascii=False).encode("utf-8", "replace").decode(),
        summary=command or json_lines.text(asked.get("title"), SUMMARY),
    )
