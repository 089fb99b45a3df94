"""Computes from the lines of the archive what OpenCode sends to the model after a resume. Pure;
called by the driver. Written against 1.18.33.

- Messages and their parts are in the order in which the CLI reads them. A failed answer is left
  out, unless it was interrupted and has content.
- A finished summary (an answer with the flag `summary`) replaces everything before the request that
  it answers.
- While a session is reverted, the message or part to which it is reverted is left out, and so is
  everything after that. The next prompt deletes what is left out.
- A tool that was running at a kill gets the result "[Tool execution was interrupted]".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from msgspec import Struct

from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import Record
from perdure.model import Item, ItemKind, Loaded
from perdure.model.loaded import call, item

_INTERRUPTED = "[Tool execution was interrupted]"
_WORDS = frozenset(
    {
        *("type", "role", "user", "assistant", "text", "tool", "callID", "state", "status"),
        *("input", "output", "error", "finish", "summary", "synthetic", "ignored"),
    }
)
"""Known keys and types of the rows. They are used to find damage: a word in a row that differs from
a known word in exactly one bit counts as damaged."""
_UNFINISHED = frozenset({"pending", "running"})
_SILENT = frozenset({"step-start", "reasoning"})


class _Message(Struct, eq=False):
    key: str
    info: Record
    parts: list[tuple[str, Record]]

    @property
    def is_summary(self) -> bool:
        finished = bool(self.info.get("finish")) and not self.info.get("error")
        return (
            self.info.get("role") == "assistant" and self.info.get("summary") is True and finished
        )


def loads(content: bytes) -> Loaded:
    """Return the items that a resume would send to the model, and those that it would leave out."""
    messages, revert = _read(content)
    shown, dropped = _reverted(messages, revert)
    at, compactions = _behind_summary(shown)
    return Loaded(
        items=tuple(chain.from_iterable(map(_items, shown[at:]))),
        compactions=compactions,
        condensed=_real_items(shown[:at]),
        dropped=_real_items(dropped),
    )


def damaged(content: bytes) -> tuple[json_lines.Span, ...]:
    """Return the byte ranges of damaged lines: rows that the CLI cannot have written."""
    return json_lines.damaged(content, _is_row, _WORDS)


def _is_row(entry: Record) -> bool:
    data = entry.get("data")
    if entry.get("type") == "message":
        return isinstance(json_lines.part(data, "role"), str)
    if entry.get("type") == "part":
        return isinstance(json_lines.part(data, "type"), str)
    if isinstance(data, dict) and "unreadable" in data:
        return False
    return entry.get("type") in ("session", "revert")


def _read(content: bytes) -> tuple[list[_Message], Mapping[str, object]]:
    messages: dict[str, _Message] = {}
    revert: Mapping[str, object] = {}
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if line else None
        data = entry.get("data") if entry is not None else None
        if entry is None or not isinstance(data, dict):
            continue
        key = json_lines.text(entry.get("id"))
        if entry.get("type") == "message":
            messages[key] = _Message(key, data, [])
        elif (
            entry.get("type") == "part"
            and (owner := messages.get(json_lines.text(entry.get("message")))) is not None
        ):
            owner.parts.append((key, data))
        elif entry.get("type") == "revert":
            revert = data
    return list(messages.values()), revert


def _index_of(key: object, keys: Sequence[str]) -> int | None:
    """Return the index of the key; None if it is not among the keys."""
    for at, each in enumerate(keys):
        if each == key:
            return at
    return None


def _real_items(messages: Sequence[_Message]) -> tuple[Item, ...]:
    """Return the items of these messages. Items that the CLI made up are left out."""
    items = chain.from_iterable(map(_items, messages))
    return tuple(each for each in items if not each.made_up)


def _reverted(
    messages: list[_Message], revert: Mapping[str, object]
) -> tuple[list[_Message], list[_Message]]:
    """Split the messages at the point to which the session was reverted. Return two lists: the
    messages before that point, and the messages at and after it. A message that contains the point
    is split into two."""
    at = _index_of(revert.get("messageID"), [message.key for message in messages])
    if at is None:
        return messages, []
    message = messages[at]
    cut = _index_of(revert.get("partID"), [key for key, _ in message.parts])
    if not cut:
        return messages[:at], messages[at:]
    kept = _Message(message.key, message.info, message.parts[:cut])
    gone = _Message(message.key, message.info, message.parts[cut:])
    return [*messages[:at], kept], [gone, *messages[at + 1 :]]


def _behind_summary(messages: list[_Message]) -> tuple[int, int]:
    """Return two numbers: the index of the first message that a resume loads, and the number of
    summaries in the conversation."""
    summaries = [message for message in messages if message.is_summary]
    if not summaries:
        return 0, 0
    asked = summaries[-1].info.get("parentID")
    at = _index_of(asked, [message.key for message in messages])
    if at is None:
        at = messages.index(summaries[-1])
    return at, len(summaries)


def _items(message: _Message) -> Iterator[Item]:
    if message.info.get("role") == "user":
        for _, part in message.parts:
            words = part.get("text")
            if (
                part.get("type") == "text"
                and not part.get("synthetic")
                and not part.get("ignored")
                and isinstance(words, str)
                and words
            ):
                yield item(ItemKind.PROMPT, words)
        return
    if _failed(message):
        return
    results: list[Item] = []
    for _, part in message.parts:
        words = part.get("text")
        if part.get("type") == "text" and isinstance(words, str) and words.strip():
            yield item(ItemKind.SUMMARY if message.is_summary else ItemKind.ANSWER, words)
        elif part.get("type") == "tool":
            asked, result = _tool(part)
            yield asked
            results.append(result)
        elif part.get("type") == "step-start":
            yield from results
            results = []
    yield from results


def _failed(message: _Message) -> bool:
    error = message.info.get("error")
    if not error:
        return False
    said = any(json_lines.text(part.get("type")) not in _SILENT for _, part in message.parts)
    return not (json_lines.part(error, "name") == "MessageAbortedError" and said)


def _tool(part: Mapping[str, object]) -> tuple[Item, Item]:
    """Return a tool call and its result, as two items. The caller must be able to separate the two,
    because the results of a step are sent after all calls of the step."""
    key, state = json_lines.text(part.get("callID")), part.get("state")
    given = json_lines.part(state, "input")
    asked = call(
        key,
        json_lines.text(part.get("tool")),
        given,
        json_lines.text(json_lines.part(given, "command")),
    )
    if json_lines.text(json_lines.part(state, "status")) in _UNFINISHED:
        return asked, item(ItemKind.RESULT, _INTERRUPTED, key, made_up=True)
    if json_lines.part(state, "status") == "completed":
        words = json_lines.part(state, "output")
    else:
        words = json_lines.part(state, "error")
    return asked, item(ItemKind.RESULT, words if isinstance(words, str) else "", key)
