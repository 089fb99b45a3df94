"""How long an agent with a budget may run while no supervisor counts its cost."""

from __future__ import annotations

import pytest

from perdure.engine.attempt.supervision import UNSUPERVISED_LEAST_S, UNSUPERVISED_S, unsupervised_s


@pytest.mark.parametrize(
    ("budget", "spent", "ran_s", "expected"),
    [
        (2.0, 0.0, 30.0, UNSUPERVISED_S),
        (2.0, 0.5, 0.0, UNSUPERVISED_S),
        (2.0, 0.1, 10.0, UNSUPERVISED_S),
        (2.0, 1.0, 5.0, 5.0),
        (2.0, 1.9, 10.0, UNSUPERVISED_LEAST_S),
        (2.0, 2.5, 10.0, UNSUPERVISED_LEAST_S),
    ],
)
def test_the_rest_of_the_budget_sets_the_time(
    budget: float, spent: float, ran_s: float, expected: float
) -> None:
    """The less of the budget is left, at the agent's rate of spending, the sooner the agent is
    ended."""
    assert unsupervised_s(budget, spent, ran_s) == expected
