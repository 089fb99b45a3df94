"""Finds the final message of an agent in the journal. `perdure run` prints it, and reports quote
it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.model.events import MAX_TEXT, Record, Said, ToolEnded, ToolStarted, TurnEnded

CUT = "\n[the rest of the message is in perdure logs]"


def last_message(records: Iterable[Record], attempt: int = 0) -> str:
    """Return the agent's last message, unchanged and not cleaned. Empty if the agent said nothing.

    The parts of a message are joined; a tool call ends a message. Messages of subagents do not
    count. `attempt`: number of the attempt; 0 means the last attempt with a message. A message
    longer than `MAX_TEXT` characters is cut, and a note says so.
    """
    parts: list[str] = []
    stated = ""
    said_by = 0
    tool_since = False
    for record in records:
        if attempt and record.attempt != attempt:
            continue
        match record.event:
            case Said(text=text, aside=False) if text.strip():
                if tool_since or record.attempt != said_by:
                    parts, stated = [], ""
                parts.append(text.strip("\n"))
                said_by, tool_since = record.attempt, False
            case ToolStarted(aside=False) | ToolEnded(aside=False):
                tool_since = True
            case TurnEnded(ok=True, text=text) if text.strip() and (
                tool_since or record.attempt != said_by
            ):
                # Claude Code repeats its final message in this event. The answer to a slash command
                # is only in this event, because its turn has no other text.
                parts, stated, said_by = [], text.strip("\n"), record.attempt
            case _:
                pass
    message = stated or "\n\n".join(parts)
    if len(message) <= MAX_TEXT:
        return message
    return message[: MAX_TEXT - len(CUT)] + CUT
