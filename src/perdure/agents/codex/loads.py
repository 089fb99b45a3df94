"""Computes from a rollout what Codex sends to the model after a resume. Pure; called by the driver.
Every rule was observed with 0.169.0.

- The items are the `response_item` records in file order. User messages that Codex itself wrote are
  left out.
- A `compacted` record replaces all items before it with a history of its own: the prompts, and a
  summary in place of the rest.
- If the user goes back (`thread/revert`, the Esc key twice), a new file for the same thread begins.
  Like the file of a fork, it holds only the later records. Its first record names the file that it
  continues, and the ordinal at which the continued part ends (`history_base`). Older versions wrote
  a record `thread_rolled_back` with the number of turns instead.
- A line that is not UTF-8 is skipped.
- A call without a result gets the result `aborted`; a result without a call is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from perdure.agents.codex import transcript
from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import Record
from perdure.model import Item, ItemKind, Loaded
from perdure.model.loaded import call, item

_CALLS = frozenset({"function_call", "custom_tool_call", "local_shell_call"})
_RESULTS = frozenset({"function_call_output", "custom_tool_call_output", "local_shell_call_output"})
_WORDS = frozenset(
    {
        *("timestamp", "ordinal", "type", "payload", "session_meta", "response_item"),
        *("event_msg", "turn_context", "compacted", "thread_rolled_back", "replacement_history"),
        *("message", "role", "content", "text", "user", "assistant", "developer", "reasoning"),
        *("input_text", "output_text", "call_id", "name", "arguments", "input", "output"),
        *_CALLS,
        *_RESULTS,
    }
)
"""Known keys and types of the records. They are used to find damage: a word in a record that
differs from a known word in exactly one bit counts as damaged."""
_TOLD = (b'"response_item"', b'"compacted"', b'"thread_rolled_back"', b'"session_meta"')


class _History:
    """State of the conversation after the records that were read so far."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.condensed: list[Item] = []
        self.dropped: list[Item] = []
        self.compactions = 0

    def compact(self, payload: object) -> None:
        """Replace all items with the replacement history that a `compacted` record contains. If the
        record has no such history, keep the prompts and add the record's summary."""
        given = json_lines.part(payload, "replacement_history")
        summary = json_lines.text(json_lines.part(payload, "message"))
        if isinstance(given, list):
            entries = json_lines.items(given)
        else:
            entries = None
        if entries is None:
            kept = [each for each in self.items if each.kind is ItemKind.PROMPT]
            now = [*kept, item(ItemKind.SUMMARY, summary)]
        else:
            now = list(chain.from_iterable(_replacing(entry, summary) for entry in entries))
        left = list(now)
        for each in self.items:
            if each in left:
                left.remove(each)
            else:
                self.condensed.append(each)
        self.items, self.compactions = now, self.compactions + 1

    def roll_back(self, turns: int) -> None:
        """Move the items of the newest `turns` turns to `dropped`."""
        starts = [at for at, each in enumerate(self.items) if each.kind is ItemKind.PROMPT]
        if turns and starts:
            at = starts[max(0, len(starts) - turns)]
            self.dropped += self.items[at:]
            del self.items[at:]


def loads(content: bytes, bases: Sequence[bytes] = ()) -> Loaded:
    """Return the items that a resume would send to the model. `bases`: contents of the files that
    this rollout continues, the nearest first."""
    history = _History()
    ends = list(map(_end, (content, *bases)))
    # Each file names an ordinal. The records of the file's base are read only up to that ordinal.
    # The newest file is no other file's base, so it is read completely.
    thread = transcript.meta_of(content).get("id")
    for each, end in reversed(list(zip((content, *bases), (None, *ends), strict=False))):
        _read(history, each, end, own=transcript.meta_of(each).get("id") == thread)
    return Loaded(
        items=tuple(_closed(history.items)),
        compactions=history.compactions,
        condensed=tuple(history.condensed),
        dropped=tuple(history.dropped),
    )


def damaged(content: bytes) -> tuple[json_lines.Span, ...]:
    """Return the byte ranges of damaged lines: lines that the CLI cannot have written."""
    return json_lines.damaged(content, _is_record, _WORDS)


def _is_record(entry: Record) -> bool:
    payload = entry.get("payload")
    if entry.get("type") == "response_item":
        return isinstance(json_lines.part(payload, "type"), str)
    return isinstance(entry.get("type"), str) and payload is not None


def _end(content: bytes) -> int | None:
    """Return the ordinal up to which (exclusive) a file continues its base. None if the file names
    no ordinal."""
    found = json_lines.part(transcript.meta_of(content), "history_base", "end_ordinal_exclusive")
    if isinstance(found, int):
        return found
    return None


def _read(history: _History, content: bytes, end: int | None, *, own: bool) -> None:
    """Add the items of a file to the history, up to the ordinal `end` (exclusive). In a file of the
    thread itself (`own`), the user rolled back all items from `end` on, so they are added as
    dropped. In a file of another thread, the items from `end` on are ignored."""
    for entry in json_lines.marked(_decodable(content), _TOLD):
        ordinal, payload = entry.get("ordinal"), entry.get("payload")
        aside = end is not None and isinstance(ordinal, int) and ordinal >= end
        if entry.get("type") == "response_item":
            if own or not aside:
                (history.dropped if aside else history.items).extend(_items(payload))
        elif entry.get("type") == "compacted" and not aside:
            history.compact(payload)
        elif json_lines.part(payload, "type") == "thread_rolled_back" and not aside:
            history.roll_back(json_lines.whole(json_lines.part(payload, "num_turns")))


def _decodable(content: bytes) -> bytes:
    """Return the content without lines that are not UTF-8. The CLI skips such lines."""
    if _is_utf8(content):
        return content
    return b"\n".join(line for line in content.split(b"\n") if _is_utf8(line))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _items(payload: object) -> Iterator[Item]:
    if not isinstance(payload, dict):
        return
    kind, key = _name(payload.get("type")), _name(payload.get("call_id"))
    if kind == "message" and payload.get("role") == "user":
        words = transcript.prompt_of(payload)
        if words.strip():
            yield item(ItemKind.PROMPT, words)
    elif kind == "message" and payload.get("role") == "assistant":
        words = _text(payload.get("content"))
        if words.strip():
            yield item(ItemKind.ANSWER, words)
    elif kind in _CALLS and key:
        given = _arguments(payload)
        yield call(key, _name(payload.get("name")) or "shell", given, _command(given))
    elif kind in _RESULTS and key:
        yield item(ItemKind.RESULT, _text(payload.get("output")), key)


def _replacing(entry: Record, summary: str) -> Iterator[Item]:
    """Yield the items of one entry of a replacement history. If the entry contains Codex's summary,
    its item is a summary and not a prompt, although the role of the entry is `user`."""
    if (
        entry.get("type") == "message"
        and summary
        and _text(entry.get("content")).strip() == summary.strip()
    ):
        yield item(ItemKind.SUMMARY, summary)
    else:
        yield from _items(entry)


def _arguments(payload: Mapping[str, object]) -> object:
    given = payload.get("arguments") or payload.get("input") or payload.get("action")
    try:
        if isinstance(given, str):
            return json.loads(given)
        return given
    except (ValueError, RecursionError):
        return given


def _command(given: object) -> str:
    command = json_lines.part(given, "cmd") or json_lines.part(given, "command")
    if isinstance(command, list):
        return " ".join(map(str, command))
    return _name(command)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return _text(content.get("content"))
    lines = []
    for part in json_lines.items(content):
        lines.append(_name(part["text"]) if "text" in part else repr(part))
    return "\n".join(lines)


def _name(value: object) -> str:
    if isinstance(value, str):
        return value
    return ""


def _closed(items: Sequence[Item]) -> Iterable[Item]:
    """Yield the items in the form in which Codex sends them. A call without a result gets one. A
    result without a call is left out."""
    calls = {each.key for each in items if each.kind is ItemKind.CALL}
    results = {each.key for each in items if each.kind is ItemKind.RESULT}
    for each in items:
        if each.kind is ItemKind.RESULT and each.key not in calls:
            continue
        yield each
        if each.kind is ItemKind.CALL and each.key not in results:
            yield item(ItemKind.RESULT, "aborted", each.key, made_up=True)
