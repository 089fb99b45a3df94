"""Repairs rollouts of Codex. The program's behavior was tested with 0.169.0
(docs/reference/mending.md).

Codex refuses a whole rollout if its first record does not name the thread. It skips unreadable
lines, and closes every call without a result (`aborted`), at the end and in the middle. A result
that occurs twice, or before its call, is sent unchanged, and the service refuses the request.
"""

from __future__ import annotations

from perdure.patterns import late_pattern
from perdure.rules.transcript_repair.findings import Harm, RepairResult, Trouble, refused
from perdure.rules.transcript_repair.records import (
    Draft,
    Habits,
    Record,
    TranscriptLine,
    draft,
    named,
    part,
    text,
)

REQUEST_LIMIT = 100_000_000
"""Size of a thread, in bytes, from which it is reported as large. No limit of the service
is known. The CLI compacts a thread long before it has this size."""

HABITS = Habits(
    opening=r'\{"timestamp":',
    is_record=lambda record: isinstance(record.get("type"), str) and "payload" in record,
    headed=False,
    keeps_unicode=False,
    ends_torn_line=True,
)
_NEEDED = ("id", "timestamp", "cwd", "originator", "cli_version")
"""Fields that the first record must have; otherwise the CLI cannot read it."""
_TIME = late_pattern(r"(\d{4}-\d{2}-\d{2})T(\d{2})-(\d{2})-(\d{2})")
_PARENT = late_pattern(rb'"forked_from_id":"([0-9a-f-]{36})"')
_CALLS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_RESULTS = tuple(_CALLS.values())


def repair(content: bytes, session_id: str, name: str = "", complaint: str = "") -> RepairResult:
    """Return the diagnosis and, if the rollout can be repaired, the new bytes. `name`: the name of
    the file, which contains the time at which the rollout began."""
    headless = content.removeprefix(b"\xef\xbb\xbf")
    made = draft(headless, HABITS)
    if headless is not content:
        made.find(
            Trouble.ENCODING, Harm.REFUSED, 1, "there is a byte order mark before the first line"
        )
        made.edited(1, "byte order mark removed", "the agent does not read the first line with it")
    if not any(_is_said(record) for _, record in made.records()):
        what = "it has neither a prompt nor an answer"
        return refused(
            Trouble.EMPTY, what, "nothing of the thread is left in this file", tuple(made.findings)
        )
    _head(made, session_id, name, headless)
    _tools(made)
    if len(content) > REQUEST_LIMIT:
        made.find(
            Trouble.OVERSIZE,
            Harm.NONE,
            0,
            f"{len(content)} bytes: a resume reads and holds all of it",
        )
    return made.result()


def _is_said(record: Record) -> bool:
    payload = record.get("payload")
    if record.get("type") != "response_item" or part(payload, "type") != "message":
        return False
    content = part(payload, "content")
    words = ""
    if isinstance(content, list):
        words = "".join(text(part(each, "text")) for each in content)
    return part(payload, "role") == "assistant" or (
        part(payload, "role") == "user" and not words.lstrip().startswith("<environment_context>")
    )


def _first_turn(made: Draft) -> object:
    """Return the context of the first turn; empty if no record has it."""
    for _, record in made.records():
        if record.get("type") == "turn_context":
            return record.get("payload")
    return {}


def _head(made: Draft, session_id: str, name: str, content: bytes) -> None:
    """Rebuild a damaged first record from the file's name and the later records."""
    first = next((line for line in made.lines if line.raw.strip() or line.changed), None)
    if first is not None and part(first.record, "type") == "session_meta":
        meta = part(first.record, "payload")
    else:
        meta = None
    if isinstance(meta, dict) and all(isinstance(meta.get(key), str) for key in _NEEDED):
        return
    said = {} if not isinstance(meta, dict) else meta
    turn = _first_turn(made)
    where = text(said.get("cwd")) or text(part(turn, "cwd"))
    at = first.number if first is not None else 1
    if not where:
        made.find(
            Trouble.HEAD,
            Harm.REFUSED,
            at,
            "the first record is incomplete, and no later one has the directory of the thread",
        )
        made.refusal = "the thread's first record is lost, and nothing is left to recreate it from"
        return
    made.find(
        Trouble.HEAD,
        Harm.REFUSED,
        at,
        "the first record, which names the thread, is incomplete",
    )
    began = _TIME.search(name)
    if began:
        stamp = f"{began[1]}T{began[2]}:{began[3]}:{began[4]}.000Z"
    else:
        stamp = text(part(made.records()[0][1], "timestamp"))
    payload = {
        "id": session_id,
        "timestamp": stamp,
        "cwd": where,
        "originator": "codex_exec",
        "cli_version": "0.0.0",
    }
    for key, value in said.items():
        if key not in _NEEDED or isinstance(value, str):
            payload[key] = value
    parent = _PARENT.search(content.partition(b"\n")[0])
    if parent:
        payload["forked_from_id"] = parent[1].decode()
    record = {"timestamp": stamp, "ordinal": 0, "type": "session_meta", "payload": payload}
    if first is not None and (first.record is None or first.record.get("type") == "session_meta"):
        made.drop(
            first,
            "the rest of the first record removed",
            "the agent reads the thread's name from the first line",
        )
    made.insert(
        None,
        record,
        "the first record recreated from the file's name and the later ones",
        "without it the agent reads nothing",
    )


def _tools(made: Draft) -> None:
    calls: dict[str, TranscriptLine] = {}
    results: dict[str, TranscriptLine] = {}
    early: list[tuple[TranscriptLine, str]] = []
    for line, record in made.records():
        payload = record.get("payload")
        kind, call = text(part(payload, "type")), text(part(payload, "call_id"))
        if record.get("type") != "response_item" or not call:
            continue
        if kind in _CALLS:
            calls.setdefault(call, line)
        elif kind in _RESULTS and call in results:
            made.find(
                Trouble.DOUBLED,
                Harm.REFUSED,
                line.number,
                f"the call {named(call)} already has its result, and both are sent",
            )
            made.drop(
                line,
                f"second result of the call {named(call)} left out",
                "the service accepts one result per call",
            )
        elif kind in _RESULTS:
            results[call] = line
            if call not in calls:
                early.append((line, call))
    for line, call in early:
        if call not in calls:
            made.find(
                Trouble.ORPHAN,
                Harm.LOSS,
                line.number,
                f"the call {named(call)} is gone; the agent drops its result",
            )
            continue
        made.find(
            Trouble.ORDER,
            Harm.REFUSED,
            line.number,
            f"the result of the call {named(call)} comes before it",
        )
        made.move(
            line,
            calls[call],
            "moved after its call",
            "the service refuses a result before its call",
        )
    for call, line in calls.items():
        if call not in results:
            made.find(
                Trouble.DANGLING,
                Harm.NONE,
                line.number,
                f"the call {named(call)} has no result; the agent closes it by itself",
            )
