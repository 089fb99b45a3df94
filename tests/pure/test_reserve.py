"""The reserve that a budget keeps for replies that were interrupted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.model import CutCost, Outcome, OutcomeKind, ReplyCosts, RunState
from perdure.model.choices import ContinuityPolicy
from perdure.rules.lifecycle import NO_RESERVE, Reserve, Tally, decide, is_about_budget, reserve

prices = st.floats(0, 9)
cuts = st.builds(CutCost, charged=prices, most=prices)
attempts = st.lists(
    st.builds(ReplyCosts, cut=st.lists(cuts, max_size=3).map(tuple), dearest=prices), max_size=4
)


def cut(*charged: float, most: float = 0.0) -> tuple[CutCost, ...]:
    return tuple(CutCost(each, most) for each in charged)


@pytest.mark.parametrize(
    ("costs", "dearest", "kept"),
    [
        ([], 9.0, NO_RESERVE),
        ([ReplyCosts(dearest=2.0)], 9.0, NO_RESERVE),
        ([ReplyCosts(cut=cut(0.5), dearest=0.8)], 0.0, Reserve(replies=1, usd=0.3)),
        ([ReplyCosts(cut=cut(0.5, 0.9), dearest=0.8)], 0.0, Reserve(replies=1, usd=0.3)),
        ([ReplyCosts(cut=cut(0.5, 0.9), dearest=0.8)], 1.0, Reserve(replies=2, usd=0.6)),
        ([ReplyCosts(cut=cut(0.5)), ReplyCosts(dearest=0.7)], 0.0, Reserve(replies=1, usd=0.2)),
        ([ReplyCosts(cut=cut(0.5))], 0.0, NO_RESERVE),
        ([ReplyCosts(cut=cut(0.5, most=0.6), dearest=0.4)], 0.0, Reserve(replies=1, usd=0.1)),
    ],
)
def test_a_reply_that_was_cut_off_may_have_cost_as_much_as_the_dearest(
    costs: list[ReplyCosts], dearest: float, kept: Reserve
) -> None:
    """For an interrupted reply the cost of the most expensive reply of all attempts is reserved,
    also of later ones. If the estimate is higher, it is kept."""
    assert reserve(costs, dearest) == kept


@given(attempts, prices)
def test_each_cut_reply_is_covered(costs: list[ReplyCosts], dearest: float) -> None:
    """Estimates and reserve together are at least the cost of the most expensive reply for each
    interrupted reply. A more expensive reply never makes the reserve smaller."""
    charged = [one for each in costs for one in each.cut]
    most = max([dearest, *(each.dearest for each in costs)])
    least = sum(max(most, one.most) for one in charged)
    assert sum(one.charged for one in charged) + reserve(costs, dearest).usd >= least - 1e-5
    assert reserve(costs, dearest + 1).usd >= reserve(costs, dearest).usd >= 0


@pytest.mark.parametrize("kind", [OutcomeKind.LOST, OutcomeKind.BUDGET_SPENT])
@pytest.mark.parametrize(
    ("spent", "kept", "message"),
    [
        (
            0.95,
            Reserve(replies=3, usd=0.21),
            "the budget may be spent: $0.95 of $1.05 is charged, and 3 replies that were cut off "
            "may have cost up to $0.21 more than that: perdure retry spends the rest, perdure "
            "retry --budget-usd raises it",
        ),
        (
            0.95,
            Reserve(replies=1, usd=0.11),
            "the budget may be spent: $0.95 of $1.05 is charged, and 1 reply that was cut off may "
            "have cost up to $0.11 more than that: perdure retry spends the rest, perdure retry "
            "--budget-usd raises it",
        ),
        (
            1.05,
            Reserve(replies=3, usd=0.21),
            "the budget is spent: perdure retry --budget-usd raises it",
        ),
    ],
)
def test_what_may_be_spent_buys_no_attempt(
    kind: OutcomeKind, spent: float, kept: Reserve, message: str
) -> None:
    """If the estimates and the reserve together reach the budget, no attempt is launched, and a
    person gets a message with both amounts."""
    tally = Tally(counted=1, free=0, allowed=9, spent_usd=spent, reserve=kept, budget_usd=1.05)
    decision = decide(Outcome(kind=kind), tally, ContinuityPolicy.DISCLOSE, 1)
    assert decision.state is RunState.FAILED and decision.condition is not None
    assert decision.condition.message == message and is_about_budget(message)


def test_what_is_left_beside_the_reserve_buys_another_attempt() -> None:
    """If the reserve is smaller than the rest of the budget, another attempt is launched."""
    kept = Reserve(replies=3, usd=0.09)
    tally = Tally(counted=1, free=0, allowed=9, spent_usd=0.95, reserve=kept, budget_usd=1.05)
    decision = decide(Outcome(kind=OutcomeKind.LOST), tally, ContinuityPolicy.DISCLOSE, 1)
    assert decision.state is RunState.QUEUED
