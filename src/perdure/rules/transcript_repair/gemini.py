"""Repairs conversations of Gemini CLI. The program's behavior was tested with 0.61.0
(docs/reference/mending.md).

Gemini CLI refuses a file whose first line does not name the conversation, and a file whose last
records remove all messages. It also refuses a message whose content is neither text nor a list. It
appends to an incomplete last line without a line break. After every resume it sends each tool
result twice, because of the way it writes its own file (gemini-cli#29365). The second results are
removed only if the service refused them.
"""

from __future__ import annotations

from perdure.rules.transcript_repair.findings import Harm, RepairResult, Trouble, refused
from perdure.rules.transcript_repair.records import (
    Draft,
    Habits,
    Record,
    TranscriptLine,
    draft,
    objects,
    part,
    text,
)

REQUEST_LIMIT = 100_000_000
"""Size of the file, in bytes, from which it is reported as large. Each resume writes all messages
again, so the file grows fast."""

HABITS = Habits(
    opening=r'\{"(id|\$set|\$rewindTo|sessionId)":',
    is_record=lambda record: (
        "$set" in record
        or "$rewindTo" in record
        or "sessionId" in record
        or ("id" in record and "type" in record)
    ),
    headed=True,
    keeps_unicode=False,
    ends_torn_line=False,
)
_SAID = ("user", "gemini")
NO_PROJECT = "0" * 64
"""Value for the hash of the project's directory in a rebuilt first line. The CLI requires such a
hash, but does not compare it."""


def repair(content: bytes, session_id: str, complaint: str = "") -> RepairResult:
    """Return the diagnosis and, if the file can be repaired, the new bytes. `complaint`: the error
    message with which the agent refused the file."""
    made = draft(content, HABITS)
    if not any(_messages(record) for _, record in made.records()):
        what = "it has neither a prompt nor an answer"
        return refused(
            Trouble.EMPTY,
            what,
            "nothing of the conversation is left in this file",
            tuple(made.findings),
        )
    _head(made, session_id)
    _content(made)
    _wiped(made)
    _tools(made, complaint)
    if len(content) > REQUEST_LIMIT:
        _cut(made, len(content))
    return made.result()


def _first_stamp(made: Draft) -> str:
    """Return the first time in the records; empty if there is none."""
    for _, record in made.records():
        for each in (record, *_messages(record)):
            stamp = text(each.get("timestamp"))
            if stamp:
                return stamp
    return ""


def _other_head(made: Draft) -> Record:
    """Return the first record that names a conversation and its start; empty if there is none."""
    for _, record in made.records():
        if isinstance(record.get("sessionId"), str) and "startTime" in record:
            return record
    return {}


def _messages(record: Record) -> list[Record]:
    """Return the messages in a record, except those that the CLI itself added at the beginning."""
    told = [record, *objects(part(record, "$set", "messages"))]
    found = []
    for each in told:
        if each.get("type") in _SAID and "<session_context>" not in str(each.get("content"))[:80]:
            found.append(each)
    return found


def _head(made: Draft, session_id: str) -> None:
    first = next((line for line in made.lines if not line.dropped), None)
    if first is not None and part(first.record, "sessionId") == session_id:
        return
    number = first.number if first is not None else 1
    if first is not None:
        named_here = text(part(first.record, "sessionId"))
    else:
        named_here = ""
    if named_here:
        what = "the first line names another conversation"
    else:
        what = "the first line, which names the conversation, is incomplete"
    findings = []
    for each in made.findings:
        if each.line != number or each.trouble is not Trouble.UNREADABLE:
            findings.append(each)
    made.findings = findings
    made.find(Trouble.HEAD, Harm.REFUSED, number, what)
    if first is not None and named_here and first.record is not None:
        first.record["sessionId"] = session_id
        made.change(
            first,
            "the conversation's id added",
            "the agent finds a conversation by its first line",
        )
        return
    if first is not None and first.record is None:
        made.drop(
            first,
            "the rest of the first line removed",
            "the agent reads the conversation's name from it",
        )
    stamp = _first_stamp(made) or "1970-01-01T00:00:00.000Z"
    head = {
        "projectHash": NO_PROJECT,
        "startTime": stamp,
        "lastUpdated": stamp,
        "kind": "main",
        **_other_head(made),
        "sessionId": session_id,
    }
    made.insert(None, head, "the first line recreated", "without it the agent reads nothing")


def _content(made: Draft) -> None:
    """Report messages whose content has a form that the CLI does not know. Drop a message if the
    CLI fails on it before it sends a request to the model."""
    for line, record in made.records():
        if (
            record.get("type") in _SAID
            and not isinstance(record.get("content"), str | list)
            and "id" in record
        ):
            loses = record.get("type") == "user"
            made.find(
                Trouble.CONTENT,
                Harm.LOSS if loses else Harm.REFUSED,
                line.number,
                "a message without content that can be read",
            )
            if not loses:
                made.drop(
                    line, "message left out", "the agent fails on it before it asks the model"
                )


def _wiped(made: Draft) -> None:
    """Drop records at the very end that remove all messages. There are two causes. A kill may have
    come between an empty list of messages and the full list that follows it. Or a rewind names a
    message that does not exist."""
    known: set[str] = set()
    last: list[TranscriptLine] = []
    for line, record in made.records():
        given = part(record, "$set", "messages")
        target = record.get("$rewindTo")
        unknown = isinstance(target, str) and target not in known
        if known and ((isinstance(given, list) and not _messages(record)) or unknown):
            last.append(line)
        elif _messages(record):
            last = []
        known |= {text(each.get("id")) for each in _messages(record)}
    for line in last:
        made.find(
            Trouble.WIPED,
            Harm.REFUSED,
            line.number,
            "it rewinds the whole conversation, and nothing came after it",
        )
        made.drop(line, "left out", "what came before it is the conversation")


def _tools(made: Draft, complaint: str) -> None:
    held: set[str] = set()
    for _, record in made.records():
        for message in _messages(record):
            calls = objects(message.get("toolCalls"))
            for call in calls:
                if isinstance(call.get("result"), list):
                    held.add(text(call.get("id")))
    refusing = "function response" in complaint.lower()
    doubled: list[TranscriptLine] = []
    for line, record in made.records():
        answers = [part(each, "functionResponse", "id") for each in objects(record.get("content"))]
        told = [each for each in answers if isinstance(each, str)]
        if not told or not all(each in held for each in told):
            continue
        doubled.append(line)
        if refusing:
            made.drop(line, "second result left out", "the service refuses more results than calls")
    if doubled:
        what = f"{len(doubled)} tool result(s) are also stored with their calls, and both are sent"
        made.find(Trouble.DOUBLED, Harm.REFUSED if refusing else Harm.NONE, doubled[0].number, what)


def _cut(made: Draft, size: int) -> None:
    """Report the size, and cut off the records before the last one that contains all messages. Each
    resume writes all messages again, so earlier records are no longer used."""
    made.find(Trouble.OVERSIZE, Harm.NONE, 0, f"{size} bytes: a resume reads and holds all of it")
    full = []
    for line, record in made.records():
        if len(objects(part(record, "$set", "messages"))) > 1:
            full.append(line)
    if not full:
        return
    first, last = next(line for line in made.lines if not line.dropped), made.lines.index(full[-1])
    before = [line for line in made.lines[:last] if line is not first and not line.dropped]
    for line in before:
        line.dropped = True
    made.edited(
        full[-1].number, f"{len(before)} lines before it left out", "it repeats all messages"
    )
