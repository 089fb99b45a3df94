"""Formats journal records as lines for the log of a run. Old records on a page and new ones in a
stream look the same. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from perdure.model.checkpoints import IMPORTED
from perdure.model.events import (
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    CheckpointTaken,
    CollisionSeen,
    ContextAdded,
    Record,
    RunReset,
    Said,
    ToolEnded,
    ToolStarted,
)
from perdure.rules.log_line import line_of
from perdure.rules.text import one_line


class PageLine(Struct, frozen=True):
    """A line of the log. `kind` is its style: `said`, `tool`, `failed`, `begin`, `end`, `mark` (a
    checkpoint), `alarm` or `note`."""

    seq: int
    at: int
    kind: str
    text: str


def lines(records: Sequence[Record]) -> list[PageLine]:
    """Return the lines to show for these records. Records that do not interest a person get no
    line."""
    found = []
    for each in records:
        if text := _text(each):
            found.append(PageLine(each.seq, each.at, _kind(each.event), text))
    return found


def _text(record: Record) -> str:
    match record.event:
        case Said(text=text):
            return text.strip()
        case ToolStarted(name=name, summary=summary):
            return f"{one_line(name, 40)}  {one_line(summary, 400)}".rstrip()
        case CheckpointTaken(number=number, why=why) if why == IMPORTED:
            return f"checkpoint {number}: imported"
        case CheckpointTaken(number=number, changed=changed, untracked=new):
            return f"checkpoint {number}: {changed} changed, {new} new"
        case ContextAdded(version=version, message=False):
            return f"instructions, version {version}"
        case AttemptEnded(outcome=outcome, receipt=receipt):
            if outcome.detail:
                detail = f" ({one_line(outcome.detail, 200)})"
            else:
                detail = ""
            return f"attempt {record.attempt}: {outcome.kind}{detail}" + (
                f", receipt {receipt.verdict}" if receipt else ""
            )
        case RunReset():
            return "reset: it starts over"
        case _:
            return line_of(record).strip()


def _kind(event: AnyEvent) -> str:
    match event:
        case Said():
            return "said"
        case ToolStarted():
            return "tool"
        case ToolEnded():
            return "failed"
        case AttemptStarted():
            return "begin"
        case AttemptEnded():
            return "end"
        case CheckpointTaken():
            return "mark"
        case CollisionSeen():
            return "alarm"
        case _:
            return "note"
