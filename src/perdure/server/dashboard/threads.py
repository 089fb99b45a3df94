"""The thread of a run: its attempts in a row, joined where the evidence says that the conversation
went on. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.engine.sessions.statistics import WENT_ON
from perdure.lateclass import dataclass
from perdure.model import Attempt, OutcomeKind, Start, Verdict

NOT_ITS_FAULT = frozenset(
    {
        OutcomeKind.LOST,
        OutcomeKind.RATE_LIMITED,
        OutcomeKind.OVERLOADED,
        OutcomeKind.WRITER_CONFLICT,
    }
)


@dataclass(frozen=True, slots=True)
class Pip:
    """One attempt. `tone`: `live`, `good`, `pause` (through no fault of its own), `stop` or `bad`;
    `joint` to the one before: `on`, `anew`, `broken`, or `open` where nobody can say yet."""

    number: int
    tone: str
    joint: str
    title: str


def thread(attempts: Sequence[Attempt]) -> list[Pip]:
    """In the order of the attempts."""
    return [
        Pip(
            each.number,
            tone_of(each.outcome.kind if each.outcome else None),
            joint(each),
            _title(each),
        )
        for each in attempts
    ]


def tone_of(kind: OutcomeKind | None) -> str:
    """The tone of an attempt that ended so; None: it has not."""
    if kind is None:
        return "live"
    if kind is OutcomeKind.SUCCEEDED:
        return "good"
    if kind is OutcomeKind.CANCELLED:
        return "stop"
    return "pause" if kind in NOT_ITS_FAULT else "bad"


def joint(attempt: Attempt) -> str:
    """How it hangs together with the attempt before. One that is not over is joined as it was
    decided."""
    if attempt.receipt is None:
        asked = attempt.continuation
        if asked is None:
            return "open"
        if asked.kind in (Start.RESUME, Start.FORK):
            return "on"
        return "anew"
    if attempt.receipt.verdict is Verdict.BROKEN:
        return "broken"
    return "on" if attempt.receipt.verdict in WENT_ON else "anew"


def _title(attempt: Attempt) -> str:
    ended = str(attempt.outcome.kind) if attempt.outcome else "at work"
    receipt = f", receipt {attempt.receipt.verdict}" if attempt.receipt else ""
    receipt += f", work {attempt.work}" if attempt.work else ""
    return f"attempt {attempt.number} {ended}{receipt}"
