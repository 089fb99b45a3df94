"""Computes from a transcript what Claude Code sends to the model after a resume. Pure; called by
the driver. Every rule was observed with 2.1.329.

Each record names its parent. A resume loads the chain from one record (the leaf) back to its root
or to a compact boundary. The rules:

- The leaf is the last record of the file. Sidechain records and records of type `progress` do not
  count. If a `last-prompt` record names another leaf, that leaf is used instead, unless the last
  record descends from that leaf or belongs to the same tool calls.
- If a parent is not in the file, the record written last before the child replaces it. This record
  must be at most five seconds older than the child. Else the chain ends at the child, and the model
  sees nothing from before the lost record. If two records have the same id, the later one counts.
- Each tool call of a reply is a record of its own. These records follow each other, and the parent
  of a result is its call. If one record of a reply is on the chain, all records of the reply are
  loaded, and all results of its calls.
- A boundary names the records that are kept after the summary. If one of them is missing, none is
  kept.
- If any boundary keeps records, the newest boundary hides all earlier records, except those that
  this boundary keeps. The kept records follow the summary. A record whose parent is hidden, or is
  the summary, is attached to the last kept record. `/compact` writes such records after a turn that
  was interrupted.
- A call without a result is left out if an answer or a prompt follows it. Else it gets the result
  "outcome unknown".
- A result without a call is left out, and so is a second result of the same call.
- If the conversation does not end with an answer, "No response requested." is added.
- A resume also writes the texts that it adds into the transcript.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from msgspec import Struct

from perdure.agents.claude import transcript
from perdure.agents.shared import json_lines
from perdure.agents.shared.json_lines import Record
from perdure.model import Item, ItemKind, Loaded
from perdure.model.loaded import call, item

_LINKED = frozenset({"user", "assistant", "attachment", "system", "progress"})
_UNKNOWN = "[Tool call interrupted: the session ended before this call's result was recorded"
_SYNTHETIC = "<synthetic>"
"""Name of the model in records that the CLI itself wrote."""
_BRIDGED_MS = 5000
"""Maximum age difference between a record whose parent is lost and the record that replaces the
parent, in milliseconds. A difference of five seconds was observed to be accepted, seven seconds
not."""
_NO_RESPONSE = "No response requested."
_WORDS = frozenset(
    {
        *("parentUuid", "isSidechain", "message", "type", "uuid", "timestamp", "sessionId"),
        *("user", "assistant", "attachment", "system", "progress", "last-prompt", "leafUuid"),
        *("role", "content", "model", "text", "thinking", "tool_use", "tool_result", "name"),
        *("input", "tool_use_id", "is_error", "compactMetadata", "logicalParentUuid"),
    }
)
"""Known keys and types of the records. They are used to find damage: a word in a record that
differs from a known word in exactly one bit counts as damaged."""
_ARGUMENTS = ("command", "file_path", "pattern", "url", "query", "description", "prompt")


class _Record(Struct, eq=False):
    key: str
    parent: str
    kind: str
    stamp: str
    message: str
    """Id of the model's reply to which an assistant record belongs."""
    items: tuple[Item, ...]
    boundary: Mapping[str, object] | None
    """Metadata of a compact boundary; None for other records."""
    before: str
    """For a boundary, id of the record before it: the boundary's logical parent, else the previous
    record in the file."""
    error: bool
    """Whether the record is an API error, which the CLI prints but never sends to the model."""


class _File(Struct, eq=False):
    """The records of a transcript by id, in file order."""

    records: dict[str, _Record]
    parents: dict[str, str]
    """Id of the parent of each record that a resume can reach, by the record's id; "" for a root.
    """
    last: str
    """Id of the newest record that a resume may start from."""
    leaf: str | None
    """Id of the leaf that the newest `last-prompt` record names; None if there is no such record.
    """
    aside: bool = False
    """Whether `leaf` is a sidechain record. The CLI then loads no conversation at all."""

    def before(self, boundary: _Record) -> _File:
        """Return the records as they were before a compact boundary was written."""
        earlier = dict(
            itertools.takewhile(lambda each: each[1] is not boundary, self.records.items())
        )
        return _File(earlier, _parents(earlier), boundary.before, None)


def loads(content: bytes) -> Loaded:
    """Return the items that a resume would send to the model, and those that it would leave out."""
    file = _read(content)
    chain = [] if file.aside else _chain(file, _leaf(file))
    shown, condensed, compactions = _behind_boundary(file, chain)
    shown = [each for each in _with_siblings(file, shown) if each.key in file.parents]
    sent, left_out = _as_sent(shown)
    there = {record.key for record in shown}
    condensed = [record for record in _with_siblings(file, condensed) if record.key not in there]
    used = there | {record.key for record in condensed}
    aside: list[Item] = []
    for record in file.records.values():
        if record.key not in used:
            aside += record.items
    return Loaded(
        items=tuple(sent),
        compactions=compactions,
        condensed=tuple(_flat(condensed)),
        dropped=tuple(each for each in (*left_out, *aside) if not each.made_up),
    )


def damaged(content: bytes) -> tuple[json_lines.Span, ...]:
    """Return the byte ranges of damaged lines: lines that the CLI cannot have written."""
    return json_lines.damaged(content, _is_record, _WORDS)


def _is_record(entry: Record) -> bool:
    kind = entry.get("type")
    if kind in ("user", "assistant"):
        said = isinstance(entry.get("message"), dict) and "parentUuid" in entry
        return said and isinstance(entry.get("uuid"), str)
    return isinstance(kind, str)


def _read(content: bytes) -> _File:
    records: dict[str, _Record] = {}
    sides: set[str] = set()
    newest, before, leaf = "", "", None
    for line in content.split(b"\n"):
        entry = json_lines.read(line) if line else None
        kind = entry.get("type") if entry is not None else None
        if entry is None or not isinstance(kind, str) or kind not in _LINKED:
            if entry is not None and kind == "last-prompt":
                leaf = _name(entry.get("leafUuid")) or leaf
            continue
        key = _name(entry.get("uuid"))
        records.pop(key, None)
        records[key] = _record(entry, kind, key, before)
        if kind == "progress":
            continue
        before = key
        if entry.get("isSidechain"):
            sides.add(key)
        else:
            newest = key
    return _File(records, _parents(records), newest, leaf, aside=leaf in sides)


def _parents(records: dict[str, _Record]) -> dict[str, str]:
    """Return the id of each record's parent, by the record's id. Records that a resume cannot reach
    are left out."""
    parents = {record.key: record.parent for record in records.values()}
    boundaries = [each for each in records.values() if each.boundary is not None]
    if not any(_preserved_records(records, each) for each in boundaries):
        return _bridged(records, parents)
    boundary = boundaries[-1]
    anchor, keys = _anchor(boundary), [each.key for each in _preserved_records(records, boundary)]
    earlier = set(itertools.takewhile(lambda key: key != boundary.key, records)) - {*keys}
    later = {key: parent for key, parent in parents.items() if key not in earlier}
    for key, parent in later.items():
        if keys and (parent == anchor or parent in earlier):
            later[key] = keys[-1]
    later |= dict(zip(keys, (anchor, *keys), strict=False))
    return _bridged(records, later)


def _bridged(records: dict[str, _Record], parents: dict[str, str]) -> dict[str, str]:
    """Return `parents` with a replacement for each parent that is missing, found by the five-second
    rule in the docstring of this module. If there is no replacement, the record becomes a root."""
    torn = set()
    for key, parent in parents.items():
        if parent and (parent == key or parent not in parents):
            torn.add(key)
    if not torn:
        return parents
    found = dict(parents)
    known: list[tuple[int, str]] = []
    for key in parents:
        at = _milliseconds(records[key].stamp)
        if key in torn:
            place = bisect_right(known, (at, "~"))
            near = place and at - known[place - 1][0] <= _BRIDGED_MS
            found[key] = known[place - 1][1] if near else ""
        insort(known, (at, key))
    return found


def _milliseconds(stamp: str) -> int:
    try:
        return int(datetime.fromisoformat(stamp).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return 0


def _name(value: object) -> str:
    if isinstance(value, str):
        return value
    return ""


def _record(entry: Record, kind: str, key: str, before: str) -> _Record:
    if kind == "system" and entry.get("subtype") == "compact_boundary":
        told = entry.get("compactMetadata")
        boundary = told if isinstance(told, dict) else {}
    else:
        boundary = None
    message = entry.get("message")
    error = bool(entry.get("isApiErrorMessage")) and json_lines.part(message, "model") == _SYNTHETIC
    return _Record(
        key=key,
        parent=_name(entry.get("parentUuid")),
        kind=kind,
        stamp=_name(entry.get("timestamp")),
        message=_name(json_lines.part(message, "id")) if kind == "assistant" else "",
        items=() if error else tuple(_items(entry, kind)),
        boundary=boundary,
        before=_name(entry.get("logicalParentUuid")) or before,
        error=error,
    )


def _items(entry: Record, kind: str) -> Iterator[Item]:
    content = json_lines.part(entry, "message", "content")
    if kind == "assistant":
        made_up = json_lines.part(entry, "message", "model") == _SYNTHETIC
        for block in json_lines.items(content):
            words = _name(block.get("text"))
            if block.get("type") == "text" and words.strip():
                yield item(ItemKind.ANSWER, words, made_up=made_up)
            elif block.get("type") == "tool_use":
                yield call(
                    _name(block.get("id")),
                    _name(block.get("name")),
                    block.get("input"),
                    _argument(block.get("input")),
                )
    elif kind == "user" and entry.get("isCompactSummary"):
        yield item(ItemKind.SUMMARY, _text(content))
    elif kind == "user":
        for block in json_lines.items(content):
            if block.get("type") == "tool_result":
                words = _text(block.get("content"))
                yield item(
                    ItemKind.RESULT,
                    words,
                    _name(block.get("tool_use_id")),
                    made_up=words.startswith(_UNKNOWN),
                )
        if words := transcript.prompt_of(entry):
            yield item(ItemKind.PROMPT, transcript.as_given(words))
    elif kind == "attachment":
        # This is a prompt that was sent while the agent was running. The model sees it together
        # with the next tool result.
        attached = entry.get("attachment")
        queued = (
            json_lines.part(attached, "type") == "queued_command"
            and json_lines.part(attached, "commandMode") == "prompt"
        )
        if queued and (words := _text(json_lines.part(attached, "prompt"))):
            yield item(ItemKind.PROMPT, transcript.as_given(words))


def _argument(given: object) -> str:
    return next((found for key in _ARGUMENTS if (found := _name(json_lines.part(given, key)))), "")


def _text(content: object) -> str:
    """Return the text of a message's content. For a block that is not text, the result contains the
    `repr` of the block."""
    if isinstance(content, str):
        return content
    lines = []
    for block in json_lines.items(content):
        lines.append(_name(block.get("text")) if block.get("type") == "text" else repr(block))
    return "\n".join(lines)


def _chain(file: _File, leaf: str) -> list[_Record]:
    """Return the chain that ends at the leaf, oldest record first. The chain begins at a record
    without a parent, for example at a compact boundary."""
    found: dict[str, _Record] = {}
    key = leaf
    while key in file.parents and key not in found:
        found[key] = file.records[key]
        key = file.parents[key]
    return [*reversed(found.values())]


def _leaf(file: _File) -> str:
    """Return the id of the leaf: the record at which the loaded chain ends."""
    named = file.records.get(file.leaf or "")
    if named is None or file.leaf not in file.parents:
        return file.last
    newest = _chain(file, file.last)
    if any(record is named for record in newest):
        return file.last
    # Several calls may run in parallel, and the parent of each result is its own call. So the
    # newest record may be on another branch than the named leaf, although both belong to one turn.
    # In this case, the newest record is the leaf.
    while named is not None and not named.message and not _is_said(named):
        named = file.records.get(file.parents.get(named.key, ""))
    calls = named is not None and any(each.kind is ItemKind.CALL for each in named.items)
    if named is not None and calls and any(record.message == named.message for record in newest):
        return file.last
    return file.leaf


def _is_said(record: _Record) -> bool:
    """Return whether a record is a user record without tool results, such as a prompt."""
    return record.kind == "user" and not any(each.kind is ItemKind.RESULT for each in record.items)


def _behind_boundary(file: _File, chain: list[_Record]) -> tuple[list[_Record], list[_Record], int]:
    """Return three values: the records of a chain that the model sees, the records that summaries
    replace, and the number of summaries."""
    shown, earlier = _since_boundary(file, chain)
    compactions, condensed = 0, list[_Record]()
    while earlier is not None:
        compactions += 1
        further, earlier = _since_boundary(*earlier)
        condensed = [*further, *condensed]
    keys = {record.key for record in shown}
    once = {record.key: record for record in condensed if record.key not in keys}
    return shown, [*once.values()], compactions


def _since_boundary(
    file: _File, chain: list[_Record]
) -> tuple[list[_Record], tuple[_File, list[_Record]] | None]:
    """Return two values: the records of a chain that follow its newest boundary, and the file and
    the chain as they were before that boundary. The second value is None if the chain has no
    boundary."""
    at = next((at for at in range(len(chain) - 1, -1, -1) if chain[at].boundary is not None), None)
    if at is None:
        return chain, None
    boundary, earlier = chain[at], file.before(chain[at])
    before = [each for each in chain[:at] if each.key in earlier.parents]
    return chain[at + 1 :], (earlier, before or _chain(earlier, boundary.before))


def _anchor(boundary: _Record) -> str:
    """Return the id of a boundary's summary record. The records that the boundary keeps are
    attached to this record."""
    told = boundary.boundary
    return _name(json_lines.part(told, "preservedMessages", "anchorUuid")) or _name(
        json_lines.part(told, "preservedSegment", "anchorUuid")
    )


def _preserved_records(records: dict[str, _Record], boundary: _Record) -> list[_Record]:
    """Return the records from before a boundary that the model still sees after the boundary. Empty
    if one of these records is missing."""
    told = boundary.boundary
    names = json_lines.part(told, "preservedMessages", "uuids")
    if isinstance(names, list):
        kept = [records.get(_name(name)) for name in names]
        if None not in kept:
            return [record for record in kept if record is not None]
        return []
    segment = json_lines.part(told, "preservedSegment")
    head = _name(json_lines.part(segment, "headUuid"))
    found: dict[str, _Record] = {}
    key = _name(json_lines.part(segment, "tailUuid"))
    while key in records and key not in found:
        found[key] = records[key]
        if key == head:
            return [*reversed(found.values())]
        key = records[key].parent
    return []


def _with_siblings(file: _File, chain: list[_Record]) -> list[_Record]:
    """Return the chain, completed by records that a resume loads with it: all records of each reply
    on the chain, and the results of all calls in these replies."""
    replies: dict[str, list[_Record]] = {}
    results: dict[str, list[_Record]] = {}
    for record in file.records.values():
        if record.message:
            replies.setdefault(record.message, []).append(record)
        for each in record.items:
            if each.kind is ItemKind.RESULT:
                results.setdefault(each.key, []).append(record)
    order = {key: at for at, key in enumerate(file.records)}
    ends = {record.message: record.key for record in chain if record.message}
    there = {record.key for record in chain}
    found: list[_Record] = []
    for record in chain:
        found.append(record)
        if record.message and ends[record.message] == record.key:
            reply = replies[record.message]
            siblings = list(reply)
            for each in _flat(reply):
                if each.kind is ItemKind.CALL:
                    siblings += results.get(each.key, ())
            more = [part for part in siblings if part.key not in there]
            more.sort(key=lambda part: (part.kind != "assistant", order[part.key]))
            found += {part.key: part for part in more}.values()
    return found


def _as_sent(shown: list[_Record]) -> tuple[list[Item], list[Item]]:
    """Return two lists: the items of the request in their order, and the items that are left out of
    the request."""
    calls = {each.key for each in _flat(shown) if each.kind is ItemKind.CALL}
    results: dict[str, Item] = {}
    for each in _flat(shown):
        if each.kind is ItemKind.RESULT and each.key in calls:
            results.setdefault(each.key, each)
    said = []
    for at, record in enumerate(shown):
        if record.kind == "assistant" or _is_said(record):
            said.append(at)
    end = shown[said[-1]] if said else None
    open_reply = end.message if end is not None else ""
    sent: list[Item] = []
    left_out: list[Item] = []
    early: set[str] = set()
    waiting_results: dict[str, Item] = {}
    for record in shown:
        for each in record.items:
            if each.kind is ItemKind.CALL:
                closed = each.key in results
                once = each.key not in early
                fits = once and (closed or (open_reply and record.message == open_reply))
                (sent if fits else left_out).append(each)
                early.add(each.key)
                if once and (waiting := waiting_results.pop(each.key, None)) is not None:
                    sent.append(waiting)
            elif each.kind is ItemKind.RESULT and results.get(each.key) is each:
                if each.key in early:
                    sent.append(each)
                else:
                    waiting_results[each.key] = each
            elif each.kind is ItemKind.RESULT:
                left_out.append(each)
            else:
                sent.append(each)
    sent += _completing_items(sent, end)
    return sent, left_out


def _completing_items(sent: list[Item], end: _Record | None) -> Iterator[Item]:
    """Yield the items that the CLI adds at the end of a request: results for open calls, and an
    answer if the conversation does not end with one."""
    closed = {each.key for each in sent if each.kind is ItemKind.RESULT}
    dangling = []
    for each in sent:
        if each.kind is ItemKind.CALL and each.key not in closed:
            dangling.append(each.key)
    for key in dangling:
        yield item(ItemKind.RESULT, f"{_UNKNOWN}, so its outcome is unknown.]", key, made_up=True)
    if (
        end is not None
        and not end.error
        and not (sent and not dangling and sent[-1].kind is ItemKind.ANSWER)
    ):
        yield item(ItemKind.ANSWER, _NO_RESPONSE, made_up=True)


def _flat(records: Iterable[_Record]) -> Iterator[Item]:
    for record in records:
        yield from record.items
