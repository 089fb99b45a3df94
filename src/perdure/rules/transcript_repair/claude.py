"""Repairs transcripts of Claude Code. The program's behavior was tested with 2.1.329
(docs/reference/mending.md).

Claude Code handles most damage itself. It skips unreadable lines, incomplete last lines and doubled
results, and still reads the whole conversation if a line names an unknown parent. It leaves out a
thinking block without a signature after the service refused it, and closes an unanswered call at
the end. It refuses a file in which it finds no conversation, and an image over the service's limit.
It silently loses several things: a call in the middle without its result, records that share a
line, and everything before a line without a parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from perdure.rules.transcript_repair.findings import Harm, RepairResult, Trouble, refused
from perdure.rules.transcript_repair.records import (
    Draft,
    Habits,
    Record,
    TranscriptLine,
    draft,
    named,
    objects,
    part,
    text,
)

IMAGE_LIMIT = 5 * 1024 * 1024
"""Maximum size of an image that the service accepts, in characters of base64. The CLI checks it
before it sends a request."""
REQUEST_LIMIT = 32_000_000
"""Maximum size of a request that the model's service accepts, in bytes."""
MEMORY_LIMIT = 100_000_000
"""Maximum size of a transcript that can be resumed with little memory, in bytes. Resuming a larger
one takes gigabytes (223 MB took 12 GB)."""

HABITS = Habits(
    opening=r'\{"(parentUuid|type|uuid|sessionId)":',
    is_record=lambda record: (
        isinstance(record.get("type"), str) and ("uuid" in record or "sessionId" in record)
    ),
    headed=False,
    keeps_unicode=True,
    ends_torn_line=True,
)
_SAID = ("user", "assistant")


def repair(
    content: bytes, session_id: str, complaint: str = "", memory: int = MEMORY_LIMIT
) -> RepairResult:
    """Return the diagnosis and, if the transcript can be repaired, the new bytes. `complaint`: the
    error message with which the agent refused the transcript. `memory`: the maximum size in bytes.
    In a larger transcript, everything before the last compaction is cut off."""
    made = draft(content, HABITS)
    if not any(_is_said(record) for _, record in made.records()):
        what = "it has neither a prompt nor an answer"
        return refused(
            Trouble.EMPTY,
            what,
            "nothing of the conversation is left in this file",
            tuple(made.findings),
        )
    _tools(made, session_id)
    _content(made, complaint)
    _chain(made)
    _size(made, memory)
    return made.result()


def _is_said(record: Record) -> bool:
    return (
        record.get("type") in _SAID
        and isinstance(record.get("message"), dict)
        and record.get("isSidechain") is not True
    )


def _said(made: Draft) -> list[tuple[TranscriptLine, Record]]:
    found = []
    for line, record in made.records():
        if _is_said(record):
            found.append((line, record))
    return found


def _blocks(record: Record) -> list[Record]:
    return objects(part(record, "message", "content"))


def _tools(made: Draft, session_id: str) -> None:
    calls: dict[str, TranscriptLine] = {}
    answered: set[str] = set()
    said = _said(made)
    for line, record in said:
        for block in _blocks(record):
            if block.get("type") == "tool_use" and (call := text(block.get("id"))):
                calls[call] = line
    for line, record in said:
        for block in _blocks(record):
            call = text(block.get("tool_use_id"))
            if block.get("type") != "tool_result" or not call:
                continue
            if call not in calls:
                made.find(
                    Trouble.ORPHAN,
                    Harm.LOSS,
                    line.number,
                    f"the call {named(call)} is gone; the agent drops its result",
                )
            elif call in answered:
                made.find(
                    Trouble.DOUBLED,
                    Harm.NONE,
                    line.number,
                    f"the call {named(call)} already has its result; the agent uses one",
                )
            answered.add(call)
    last, known = _last_words(said), {text(record.get("uuid")) for _, record in made.records()}
    heirs = {id(before): after for (before, _), (after, _) in pairwise(said)}
    for call, line in calls.items():
        if call in answered:
            continue
        if not _goes_on(last, line):
            made.find(
                Trouble.DANGLING,
                Harm.NONE,
                line.number,
                f"the call {named(call)} has no result; the agent closes it by itself",
            )
            continue
        made.find(
            Trouble.DANGLING,
            Harm.LOSS,
            line.number,
            f"the call {named(call)} has no result; the agent leaves the call out",
        )
        _close(made, line, call, session_id, heirs.get(id(line)), known)


def _last_words(said: list[tuple[TranscriptLine, Record]]) -> list[tuple[int, str]]:
    """Return the numbers and message ids of at most two lines: the last line that has more than
    tool results, and the last such line of another message. One message may take several lines. The
    two lines show whether the conversation continued after a call."""
    last: list[tuple[int, str]] = []
    for line, record in reversed(said):
        own = text(part(record, "message", "id"))
        if not _only_results(record) and (not last or own != last[0][1]):
            last.append((line.number, own))
        if len(last) == 2:
            break
    return last


def _goes_on(last: list[tuple[int, str]], line: TranscriptLine) -> bool:
    own = text(part(line.record, "message", "id"))
    return any(number > line.number and (not own or other != own) for number, other in last)


def _only_results(record: Record) -> bool:
    blocks = _blocks(record)
    return bool(blocks) and all(block.get("type") == "tool_result" for block in blocks)


def _close(
    made: Draft,
    line: TranscriptLine,
    call: str,
    session_id: str,
    heir: TranscriptLine | None,
    known: set[str],
) -> None:
    """Insert a placeholder result for a call whose result is missing. `heir`: the line that
    followed the lost result; the placeholder becomes its parent."""
    record = line.record or {}
    own = text(record.get("uuid"))
    if heir is not None:
        lost = text(part(heir.record, "parentUuid"))
    else:
        lost = ""
    if lost and lost not in known:
        new = lost
    else:
        new = str(uuid5(NAMESPACE_URL, f"{session_id}/{call}"))
    known.add(new)
    if heir is not None and heir.record is not None and lost == own:
        heir.record["parentUuid"] = new
        heir.changed = True
    words = (
        "[perdure: the result of this call is not in the transcript any more; whether it took "
        "effect is unknown.]"
    )
    kept = (
        "isSidechain",
        "sessionId",
        "cwd",
        "version",
        "gitBranch",
        "userType",
        "entrypoint",
        "timestamp",
        "slug",
    )
    result = {"tool_use_id": call, "type": "tool_result", "content": words, "is_error": True}
    answer: Record = {"parentUuid": own or None}
    for key in kept:
        if key in record:
            answer[key] = record[key]
    answer["type"] = "user"
    answer["uuid"] = new
    answer["message"] = {"role": "user", "content": [result]}
    made.insert(
        line,
        answer,
        f"a result put in for the call {named(call)}",
        "the agent leaves out a call without its result",
    )


def _content(made: Draft, complaint: str) -> None:
    gone: dict[str, object] = {}
    thinking = "thinking" in complaint.lower() or "signature" in complaint.lower()
    for line, record in _said(made):
        message = record["message"]
        blocks = message.get("content")
        if not isinstance(blocks, list):
            continue
        kept = []
        for block in blocks:
            if isinstance(block, dict) and block.get("type") == "thinking" and thinking:
                made.find(
                    Trouble.CONTENT,
                    Harm.REFUSED,
                    line.number,
                    "a thought with a signature that the service rejects",
                )
                made.change(
                    line, "thought left out", "the service refused a thought for its signature"
                )
                continue
            if (
                isinstance(block, dict)
                and block.get("type") == "thinking"
                and not block.get("signature")
            ):
                made.find(
                    Trouble.CONTENT,
                    Harm.NONE,
                    line.number,
                    "a thought without a signature; refused, the agent leaves it out by itself",
                )
            if (
                isinstance(block, dict)
                and block.get("type") == "tool_use"
                and not isinstance(block.get("input"), dict)
            ):
                made.find(
                    Trouble.CONTENT, Harm.REFUSED, line.number, "a tool call without its input"
                )
                block["input"] = {}
                made.change(line, "empty input added", "the service refuses a call without one")
            kept.append(_without_images(made, line, block))
        message["content"] = kept
        if blocks and not kept:
            line.dropped = True
            gone[text(record.get("uuid"))] = record.get("parentUuid")
    gone.pop("", None)
    _take_out(made, gone)


def _without_images(made: Draft, line: TranscriptLine, block: Any) -> Any:
    """Return the block. If the service refuses an image in it, a text replaces that image."""
    if not isinstance(block, dict):
        return block
    if isinstance(block.get("content"), list):
        block["content"] = [_without_images(made, line, inner) for inner in block["content"]]
    image = part(block, "source", "data")
    if block.get("type") != "image" or not isinstance(image, str) or 0 < len(image) <= IMAGE_LIMIT:
        return block
    what = f"an image of {len(image)} characters; the service accepts 1 to {IMAGE_LIMIT}"
    made.find(Trouble.CONTENT, Harm.REFUSED, line.number, what)
    made.change(
        line, "image replaced by a note", "the service refuses the whole conversation for it"
    )
    return {
        "type": "text",
        "text": f"[perdure: {what}; it was removed so that the conversation can continue.]",
    }


def _take_out(made: Draft, gone: Mapping[str, object]) -> None:
    """Attach the children of removed lines to the parents of those lines. `gone`: the parents of
    the removed lines, by the ids of those lines."""
    for line, record in made.records() if gone else ():
        parent, seen = record.get("parentUuid"), set[str]()
        while isinstance(parent, str) and parent in gone and parent not in seen:
            seen.add(parent)
            parent = gone[parent]
        if seen:
            record["parentUuid"] = parent
            line.changed = True


def _chain(made: Draft) -> None:
    """Report a line in the middle that has no parent, and fix it if possible. Such a line hides
    everything before it from the model.

    The CLI's print mode never starts over in the same file. So the parent was lost, and the line is
    attached to the line before it. In the interactive program a person may have gone back to the
    beginning, so the line is only reported.
    """
    before: TranscriptLine | None = None
    said = False
    for line, record in made.records():
        if record.get("isSidechain") is True or not isinstance(record.get("uuid"), str):
            continue
        bare = (
            "parentUuid" in record
            and record["parentUuid"] is None
            and not record.get("logicalParentUuid")
        )
        if (
            bare
            and said
            and before is not None
            and record.get("type") in _SAID
            and not record.get("isCompactSummary")
        ):
            alone = record.get("entrypoint") == "sdk-cli"
            made.find(
                Trouble.CHAIN,
                Harm.LOSS,
                line.number,
                "its parent is missing, so the model is not shown anything before it",
            )
            if alone and before.record is not None:
                record["parentUuid"] = before.record["uuid"]
                made.change(
                    line,
                    "joined to the line before it",
                    "the agent sends only the chain of parents to the model",
                )
        before = line
        said = said or _is_said(record)


def _size(made: Draft, memory: int) -> None:
    """Check the size against two limits: the size of a request to the service, and the memory that
    a resume needs. Only text from before the last compaction can be cut off, because it is no
    longer sent to the model."""
    records = made.records()
    at = None
    for index, (_, record) in enumerate(records):
        if record.get("subtype") == "compact_boundary":
            at = index
    told = 0
    for line, record in records[at or 0 :]:
        if _is_said(record):
            told += len(line.raw)
    whole = sum(len(line.raw) for line in made.lines)
    if told > REQUEST_LIMIT:
        made.find(
            Trouble.OVERSIZE,
            Harm.REFUSED,
            0,
            f"{told} bytes are sent to the model; the service accepts {REQUEST_LIMIT}",
        )
        made.refusal = "it exceeds the limit of a request, and no compaction shortens it"
    elif whole > memory and at is None:
        made.find(
            Trouble.OVERSIZE,
            Harm.NONE,
            0,
            f"{whole} bytes: a resume takes gigabytes of memory, and there is no compaction to cut "
            "at",
        )
    elif whole > memory and at is not None:
        made.find(
            Trouble.OVERSIZE, Harm.NONE, 0, f"{whole} bytes: a resume takes gigabytes of memory"
        )
        boundary, record = records[at]
        kept = _preserved(record)
        count = 0
        for line in made.lines[: made.lines.index(boundary)]:
            if not line.record or line.record.get("uuid") not in kept:
                line.dropped = True
                count += 1
        made.edited(
            boundary.number,
            f"{count} lines before it left out",
            "they were compacted and are no longer sent",
        )


def _preserved(boundary: Record) -> frozenset[str]:
    """Return the ids of the messages from before the compaction that are still sent to the
    model."""
    found = part(boundary, "compactMetadata", "preservedMessages", "allUuids")
    if isinstance(found, list):
        return frozenset(each for each in found if isinstance(each, str))
    return frozenset()
