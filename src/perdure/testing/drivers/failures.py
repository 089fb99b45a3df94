"""Tests of how an attempt fails. The model service may refuse a request for several reasons. Each
reason must have its own outcome, because each is handled differently."""

from __future__ import annotations

import time

import pytest

from perdure.model import OutcomeKind
from perdure.testing.drivers.bench import Make, Suite


class Failing(Suite):
    """Tests of rejected API keys, limits, overload, and conversations that are too long."""

    def test_a_conversation_that_is_too_long_is_told_apart(self, bench: Make) -> None:
        """If the service refuses a request because it is too long, the outcome is
        CONTEXT_EXHAUSTED."""
        stage = bench("full x99\nsay Never.")
        ran = stage.run_until("hello", stage.driver.abilities.retries_in_a_row)
        assert ran.outcome.kind is OutcomeKind.CONTEXT_EXHAUSTED, ran.outcome

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (401, OutcomeKind.AUTH_FAILED),
            (429, OutcomeKind.RATE_LIMITED),
            (500, OutcomeKind.OVERLOADED),
        ],
    )
    def test_a_failing_service_is_told_apart(
        self, bench: Make, status: int, kind: OutcomeKind
    ) -> None:
        """A rejected API key, a rate limit and an overloaded service have different outcomes."""
        assert bench(f"fail {status} x99\nsay Never.").run("hello").outcome.kind is kind

    def test_the_end_of_a_usage_limit_is_known(self, bench: Make) -> None:
        """If a usage limit ends in two hours, the outcome contains this time, to within a few
        minutes."""
        before = int(time.time() * 1000)
        ran = bench("limit 7200 x99\nsay Never.", subscription=True).run("hello")
        assert ran.outcome.kind is OutcomeKind.RATE_LIMITED, ran.outcome
        assert ran.outcome.until is not None
        assert 7_100_000 < ran.outcome.until - before < 7_400_000
