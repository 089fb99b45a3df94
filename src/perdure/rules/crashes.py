"""What a row of crashes says: that a run, or an agent on this machine, should stop burning
attempts. Pure; called by `engine.attempt.finish`.

A crash is an end that says nothing of limits, of the conversation or of the work: the program
failed, fell silent, or was lost. What makes a loop of crashes is that nothing came of any of them:
not a word of the agent, not a tool, so nothing in the workdir either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from perdure.model import Attempt, OutcomeKind

CRASHES = frozenset(
    {OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.STALLED, OutcomeKind.LOST}
)
IN_A_ROW = 3
"""So many crashes of one run in a row, and nothing that came of them, end it."""
AT_ONCE_MS = 10_000
"""A crash so soon after the claim is one of the start."""
STARTS = 5
"""So many starts of one agent that failed in a row, of two runs at least, park the agent."""
LONG_AGO_MS = 3_600_000
"""A start that failed longer ago says nothing of now."""
PAUSE_MS, LONGEST_PAUSE_MS = 300_000, 3_600_000


def fingerprint(attempt: Attempt) -> str:
    """Equal for crashes of one cause: the kind and the words, without numbers, ids, times and
    places."""
    if attempt.outcome is None:
        return ""
    words = re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", attempt.outcome.detail.lower())
    words = re.sub(r"/\S+", "/...", words)
    return f"{attempt.outcome.kind}: {' '.join(words.split())[:200]}"


def loop(attempts: Sequence[Attempt]) -> str:
    """What a person is told of a run whose newest attempts (oldest first) crash and crash again;
    empty where they do not."""
    last = attempts[-IN_A_ROW:]
    if len(last) < IN_A_ROW or not all(_in_vain(attempt) for attempt in last):
        return ""
    words = last[-1].outcome.detail if last[-1].outcome is not None else ""
    if all(_soon(attempt) for attempt in last):
        return (
            f"the agent ended within seconds of its start {IN_A_ROW} times in a row, without a "
            f"word: {words}"
        )
    if len({fingerprint(attempt) for attempt in last}) == 1:
        return (
            f"{IN_A_ROW} attempts in a row ended in the same way, without a word of the agent: "
            f"{words}"
        )
    return ""


def pause_ms(newest: Sequence[Attempt], now: int) -> int:
    """How long nothing is to be launched on an agent after these attempts of it, of all runs,
    newest first; 0 where it starts."""
    row: list[Attempt] = []
    for attempt in newest:
        said = attempt.continuation is not None and attempt.outcome is not None
        if said and not (_in_vain(attempt) and _soon(attempt)):
            break
        if said and now - attempt.started <= LONG_AGO_MS:
            row.append(attempt)
    if len(row) < STARTS or len({attempt.run for attempt in row}) < 2:
        return 0
    return min(PAUSE_MS << (len(row) - STARTS), LONGEST_PAUSE_MS)


def _in_vain(attempt: Attempt) -> bool:
    """Whether it crashed and nothing came of it."""
    if (
        attempt.outcome is None
        or attempt.outcome.kind not in CRASHES
        or attempt.continuation is None
    ):
        return False
    # An answer that was cut off in its beginning is counted as well, and nothing came of it.
    paid = attempt.usage.output and not attempt.usage.estimated
    return not (paid or (attempt.receipt is not None and attempt.receipt.evidence.answered))


def _soon(attempt: Attempt) -> bool:
    """Whether it ended before its conversation had begun, and at once."""
    began = attempt.receipt is not None and attempt.receipt.evidence.prompt_found
    return not began and attempt.ended is not None and attempt.ended - attempt.started <= AT_ONCE_MS
