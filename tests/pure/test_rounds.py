"""How failed checks are counted."""

from __future__ import annotations

from perdure.engine.attempt.verification import failed_checks
from perdure.model import Attempt, Outcome, OutcomeKind


def test_each_version_of_the_instructions_has_rounds_of_its_own() -> None:
    """Only failed checks of the same instructions count as rounds. A crash between them has no
    effect."""
    ended = [
        (1, OutcomeKind.VERIFY_FAILED),
        (1, OutcomeKind.LOST),
        (1, OutcomeKind.VERIFY_FAILED),
        (2, OutcomeKind.VERIFY_FAILED),
    ]
    attempts = [
        Attempt(
            run="r",
            number=number,
            context_version=version,
            worker="w",
            started=0,
            outcome=Outcome(kind=kind),
        )
        for number, (version, kind) in enumerate(ended, 1)
    ]
    assert [failed_checks(attempts, version) for version in (1, 2, 3)] == [2, 1, 0]
