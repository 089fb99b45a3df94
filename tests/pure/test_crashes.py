"""The meaning of several crashes in a row, for a run and for an agent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.model import (
    Attempt,
    Continuation,
    Evidence,
    Outcome,
    OutcomeKind,
    Receipt,
    Start,
    Usage,
    Verdict,
)
from perdure.rules.crashes import (
    AT_ONCE_MS,
    CRASHES,
    IN_A_ROW,
    LONG_AGO_MS,
    LONGEST_PAUSE_MS,
    PAUSE_MS,
    STARTS,
    fingerprint,
    loop,
    pause_ms,
)
from tests.pure.making import kinds

NOW = 1_700_000_000_000
SILENT = Receipt(verdict=Verdict.FRESH)
TOLD = Receipt(verdict=Verdict.NATIVE, evidence=Evidence(answered=True, prompt_found=True))
HEARD = Receipt(verdict=Verdict.NATIVE, evidence=Evidence(prompt_found=True))


def crash(
    detail: str = "it ended without a result (exit code 1)",
    lived_ms: int = 400,
    run: str = "r1",
    **more: object,
) -> Attempt:
    attempt = Attempt(
        run=run, number=1, context_version=1, worker="w", started=NOW - lived_ms, ended=NOW, continuation=Continuation(kind=Start.FRESH),
        outcome=Outcome(kind=OutcomeKind.FAILED, detail=detail), receipt=SILENT,
    )  # fmt: skip
    return replace(attempt, **more)


def test_crashes_at_the_start_are_a_loop() -> None:
    """Several crashes in a row, each within seconds and without output, are a loop, whatever their
    errors are."""
    row = [crash(f"error of another kind: {word}") for word in ("one", "two", "three")]
    assert "within seconds of its start 3 times" in loop(row) and "three" in loop(row)
    assert loop(row[1:]) == ""


def test_crashes_of_one_cause_are_a_loop() -> None:
    """Repeated attempts that end in the same way without any output are a loop, however long they
    took. Different ends are no loop."""
    slow = [
        crash(f"segfault at 0x7f{n:06x}aaaa in /tmp/x{n}/y", 90_000 + n, receipt=HEARD)
        for n in range(3)
    ]
    assert len({fingerprint(attempt) for attempt in slow}) == 1
    assert "ended in the same way" in loop(slow)
    assert loop([*slow[:2], crash("something else", 90_000)]) == ""


@given(
    st.lists(kinds, min_size=IN_A_ROW, max_size=IN_A_ROW),
    st.integers(0, IN_A_ROW - 1),
    st.sampled_from(["said", "paid", "other"]),
)
def test_progress_is_no_loop(row: list[OutcomeKind], at: int, how: str) -> None:
    """One recent attempt that had output, got an answer, or ended for another reason than a crash
    means that the crashes are no loop."""
    attempts = [crash(outcome=Outcome(kind=kind, detail="x")) for kind in row]
    assert bool(loop(attempts)) == all(kind in CRASHES for kind in row)
    changed = {
        "said": {"receipt": TOLD},
        "paid": {"usage": Usage(output=1)},
        "other": {"outcome": Outcome(kind=OutcomeKind.RATE_LIMITED)},
    }[how]
    assert loop([*attempts[:at], replace(attempts[at], **changed), *attempts[at + 1 :]]) == ""


def test_an_agent_that_does_not_start_is_parked() -> None:
    """After enough failed starts in a row, of at least two runs, the agent is not started for a
    while. The pause grows up to a limit, and ends after one successful start."""
    row = [crash(run=f"r{n % 2}") for n in range(30)]
    assert pause_ms(row[: STARTS - 1], NOW) == 0
    assert pause_ms([crash(run="r1")] * 30, NOW) == 0
    pauses = [pause_ms(row[:many], NOW) for many in range(STARTS, 30)]
    assert pauses[0] == PAUSE_MS and pauses == sorted(pauses) and pauses[-1] == LONGEST_PAUSE_MS
    assert pause_ms([crash(receipt=TOLD), *row], NOW) == 0
    assert pause_ms([*row[: STARTS - 1], crash(lived_ms=AT_ONCE_MS + 1), *row], NOW) == 0


def test_what_says_nothing_of_the_start_is_passed_over() -> None:
    """Attempts that never reached a launch do not count as starts, and old starts do not count
    either."""
    row = [crash(run=f"r{n % 2}") for n in range(STARTS)]
    waiting = crash(continuation=None, outcome=Outcome(kind=OutcomeKind.WRITER_CONFLICT))
    assert pause_ms([row[0], waiting, *row[1:]], NOW) == PAUSE_MS
    assert pause_ms(row, NOW + LONG_AGO_MS) == 0
