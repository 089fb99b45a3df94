"""Repairs conversations of OpenCode. They are read as lines from the database, or from perdure's
own copy (`agents.opencode.archive`).

OpenCode 1.18.33 closes interrupted calls by itself. A row with broken JSON makes every use of the
session fail. If such a row is restored with OpenCode's own `import`, everything after it is
silently lost. perdure never writes to the database, and an import does not replace existing rows.
So perdure lets OpenCode remove the session before it imports a repaired copy.
"""

from __future__ import annotations

from perdure.rules.transcript_repair.findings import Harm, RepairResult, Trouble, refused
from perdure.rules.transcript_repair.records import Draft, Habits, Record, draft, part, text

HABITS = Habits(
    opening=r'\{"(created|data)":',
    is_record=lambda record: (
        record.get("type") in ("session", "message", "part", "revert")
        and isinstance(record.get("id"), str)
    ),
    headed=True,
    keeps_unicode=False,
    ends_torn_line=False,
)


def _is_said(record: Record) -> bool:
    return record.get("type") == "part" and part(record, "data", "type") in ("text", "tool")


def repair(content: bytes, session_id: str, complaint: str = "") -> RepairResult:
    """Return the diagnosis and, if the copy can be repaired, the new bytes."""
    made = draft(content, HABITS)
    if not any(_is_said(record) for _, record in made.records()):
        return refused(
            Trouble.EMPTY,
            "it has neither a prompt nor an answer",
            "nothing of the session is left",
            tuple(made.findings),
        )
    first = made.records()[0][1] if made.records() else {}
    if first.get("type") != "session" or not text(first.get("directory")):
        made.find(
            Trouble.HEAD,
            Harm.REFUSED,
            1,
            "the session's own row is lost: its directory is unknown",
        )
        made.refusal = "the session's own row is lost, and its directory is not recorded"
        return made.result()
    _rows(made)
    return made.result()


def _rows(made: Draft) -> None:
    """Repair or drop rows with broken JSON, and parts whose message is missing."""
    lost: set[str] = set()
    messages: set[str] = set()
    for line, record in made.records():
        key, owner = text(record.get("id")), text(record.get("message"))
        data = record.get("data")
        if isinstance(data, dict):
            broken = "unreadable" in data
        else:
            broken = record.get("type") != "session"
        if record.get("type") == "message":
            (lost if broken else messages).add(key)
        if record.get("type") == "message" and broken:
            made.find(
                Trouble.UNREADABLE,
                Harm.REFUSED,
                line.number,
                "the row of a message is broken, and OpenCode fails on the session",
            )
            made.drop(line, "message left out", "OpenCode fails on a session with such a row")
        elif record.get("type") == "part" and (owner in lost or owner not in messages):
            made.find(Trouble.ORPHAN, Harm.LOSS, line.number, "a part whose message is lost")
            made.drop(line, "part left out", "its message is lost")
        elif record.get("type") == "part" and broken:
            made.find(
                Trouble.UNREADABLE,
                Harm.REFUSED,
                line.number,
                "the row of a part is broken, and OpenCode fails on the session",
            )
            words = "[perdure: the text here cannot be read any more.]"
            record["data"] = {
                "type": "text",
                "text": words,
                "synthetic": record.get("role") == "user",
            }
            made.change(line, "replaced by a note", "OpenCode fails on a session with such a row")
        elif record.get("type") == "part" and part(record, "data", "state", "status") in (
            "running",
            "pending",
        ):
            made.find(
                Trouble.DANGLING,
                Harm.NONE,
                line.number,
                "a tool was running when the agent ended; OpenCode closes it by itself",
            )
