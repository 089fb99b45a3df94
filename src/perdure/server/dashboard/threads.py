"""Prepares the thread of a run for display: its attempts in a row. Between two attempts it shows
whether the conversation was continued. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from perdure.engine.sessions.statistics import WENT_ON
from perdure.model import Attempt, OutcomeKind, Start, Verdict

NOT_ITS_FAULT = frozenset(
    {
        OutcomeKind.LOST,
        OutcomeKind.RATE_LIMITED,
        OutcomeKind.OVERLOADED,
        OutcomeKind.WRITER_CONFLICT,
    }
)


class Pip(Struct, frozen=True):
    """One attempt in the thread. `tone` is `live`, `good`, `pause` (ended for an outside reason),
    `stop` or `bad`. `joint` is the connection to the attempt before: `on` (conversation continued),
    `fresh`, `broken`, or `open` if not known yet."""

    number: int
    tone: str
    joint: str
    title: str


def thread(attempts: Sequence[Attempt]) -> list[Pip]:
    """Return the thread of these attempts, in the given order."""
    found = []
    for each in attempts:
        found.append(
            Pip(
                each.number,
                tone_of(each.outcome.kind if each.outcome else None),
                joint(each),
                _title(each),
            )
        )
    return found


def tone_of(kind: OutcomeKind | None) -> str:
    """Return the tone for an outcome. None means that the attempt has not ended."""
    if kind is None:
        return "live"
    if kind is OutcomeKind.SUCCEEDED:
        return "good"
    if kind is OutcomeKind.CANCELLED:
        return "stop"
    if kind in NOT_ITS_FAULT:
        return "pause"
    return "bad"


def joint(attempt: Attempt) -> str:
    """Return how an attempt is connected to the previous one, by its receipt. If it has no receipt
    yet, its planned continuation decides."""
    if attempt.receipt is None:
        asked = attempt.continuation
        if asked is None:
            return "open"
        if asked.kind in (Start.RESUME, Start.FORK):
            return "on"
        return "fresh"
    if attempt.receipt.verdict is Verdict.BROKEN:
        return "broken"
    if attempt.receipt.verdict in WENT_ON:
        return "on"
    return "fresh"


def _title(attempt: Attempt) -> str:
    ended = str(attempt.outcome.kind) if attempt.outcome else "running"
    if attempt.receipt:
        receipt = f", receipt {attempt.receipt.verdict}"
    else:
        receipt = ""
    receipt += f", work {attempt.work}" if attempt.work else ""
    return f"attempt {attempt.number} {ended}{receipt}"
