"""Detects runs and agents that crash again and again, and ends or pauses them. Pure; called by
`engine.attempt.finish`.

A crash is an end that has nothing to do with limits, the conversation or the work: the program
failed, fell silent, or was lost. A series of crashes counts as a loop only if none of them had a
result: the agent wrote no text and used no tool, so the workdir did not change either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from perdure.model import Attempt, OutcomeKind

CRASHES = frozenset(
    {OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.STALLED, OutcomeKind.LOST}
)
IN_A_ROW = 3
"""Number of consecutive crashes without any result after which perdure ends a run."""
AT_ONCE_MS = 10_000
"""Time after the start of an attempt, in ms. A crash within this time counts as a failed start of
the agent."""
STARTS = 5
"""Number of consecutive failed starts of one agent, of at least two runs, after which the agent is
parked."""
LONG_AGO_MS = 3_600_000
"""Age of a failed start, in ms, from which it is ignored."""
PAUSE_MS, LONGEST_PAUSE_MS = 300_000, 3_600_000


def fingerprint(attempt: Attempt) -> str:
    """Return a text that is equal for crashes with the same cause. It consists of the outcome's
    kind and detail, without numbers, ids and paths."""
    if attempt.outcome is None:
        return ""
    words = re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", attempt.outcome.detail.lower())
    words = re.sub(r"/\S+", "/...", words)
    return f"{attempt.outcome.kind}: {' '.join(words.split())[:200]}"


def loop(attempts: Sequence[Attempt]) -> str:
    """Return a sentence that describes the crash loop, for a person. Empty if the run's newest
    attempts are not a crash loop. `attempts` are oldest first."""
    last = attempts[-IN_A_ROW:]
    if len(last) < IN_A_ROW or not all(map(_in_vain, last)):
        return ""
    words = last[-1].outcome.detail if last[-1].outcome is not None else ""
    if all(map(_soon, last)):
        return (
            f"the agent ended within seconds of its start {IN_A_ROW} times in a row, without "
            f"output: {words}"
        )
    if len(set(map(fingerprint, last))) == 1:
        return (
            f"{IN_A_ROW} attempts in a row ended in the same way, without output of the agent: "
            f"{words}"
        )
    return ""


def pause_ms(newest: Sequence[Attempt], now: int) -> int:
    """Return the time, in ms, for which no attempt of this agent may be launched; 0 if the agent
    need not be parked. `newest` are the agent's attempts over all runs, newest first."""
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
    """Return whether the attempt crashed without any result."""
    if (
        attempt.outcome is None
        or attempt.outcome.kind not in CRASHES
        or attempt.continuation is None
    ):
        return False
    # An estimated usage also counts an answer that was cut off at its beginning. Such an answer is
    # not a result.
    paid = attempt.usage.output and not attempt.usage.estimated
    return not (paid or (attempt.receipt is not None and attempt.receipt.evidence.answered))


def _soon(attempt: Attempt) -> bool:
    """Return whether the attempt ended soon after its start, before its conversation had begun."""
    began = attempt.receipt is not None and attempt.receipt.evidence.prompt_found
    return not began and attempt.ended is not None and attempt.ended - attempt.started <= AT_ONCE_MS
