"""Computes how much a run has spent and how much of its budget is left. All attempts count,
including a running one, and so do rounds of checks. Used by `launch`, `supervision`, `finish` and
plans.

Dollars that an agent reports are used as they are. If it reports only tokens, and its model is
known, dollars are estimated from the list prices of `pricing`. This estimate is good enough to
enforce a budget, and is shown only if the run has a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from perdure.model import Attempt, ReplyCosts, TaskRun, Usage
from perdure.model.events import Summarised
from perdure.protocols import RunStore
from perdure.rules.lifecycle import Reserve, reserve

LEAST = 0.000001
"""Smallest budget that can be passed to a CLI, in dollars."""


def dollars(usage: Usage, model: str) -> float:
    """Return the cost of a usage in dollars: the cost that the agent reported, or else an estimate
    from the price list. 0 if the price list does not have the model."""
    if usage.cost_usd:
        return usage.cost_usd
    from perdure.rules.pricing import cost, price_of  # imported late: a first attempt has no cost

    price = price_of(model)
    if price is None:
        return 0.0
    return cost(usage, price)


def spent(attempts: Sequence[Attempt], model: str) -> float:
    """Return the cost of all attempts together, in dollars."""
    return sum(dollars(attempt.usage, model_of(attempt, model)) for attempt in attempts)


def model_of(attempt: Attempt, model: str) -> str:
    """Return the model that the attempt used according to its transcript. If that is unknown,
    return the model that was requested for the attempt, or else `model`."""
    return (
        (attempt.fill.model if attempt.fill is not None else "")
        or attempt.flags.get("model")
        or model
    )


def reserved(attempts: Sequence[Attempt]) -> Reserve:
    """Return how much more the replies that were cut off may have cost than the estimate that was
    already charged for them."""
    return reserve(attempt.costs for attempt in attempts)


class Allowance(Struct, frozen=True):
    """The cost limit of an attempt."""

    rest: float = 0.0
    """Remaining part of the budget, in dollars; 0: no limit."""
    costs: tuple[ReplyCosts, ...] = ()
    """Reply costs of the run's other attempts. The reserve for replies that were cut off is
    computed from them."""

    def usd(self, dearest: float = 0.0) -> float:
        """Return the limit in dollars; 0: no limit. `dearest`: the cost of the attempt's most
        expensive reply so far."""
        if not self.rest:
            return 0.0
        return max(self.rest - reserve(self.costs, dearest).usd, LEAST)

    @property
    def varies(self) -> bool:
        """Whether the limit depends on the cost of the attempt's most expensive reply."""
        return bool(self.rest) and any(each.cut for each in self.costs)


def allowance(store: RunStore, run: TaskRun, number: int = 0) -> Allowance:
    """Return the cost limit of attempt `number`, or of the next attempt if `number` is 0.

    The budget counts as exhausted when at most its reserve is left. An attempt then begins only if
    a person has allowed it. The attempt gets the rest of the budget, including the reserve, or the
    full budget again if nothing is left.

    The limit covers the whole attempt, even after another supervisor has adopted it. So the
    attempt's own cost is not subtracted, except that of its summary turn.
    """
    budget = run.spec.budget_usd
    if not budget:
        return Allowance()
    others = [attempt for attempt in store.attempts(run.id) if attempt.number != number]
    rest = budget - spent(others, run.spec.model)
    costs = tuple(attempt.costs for attempt in others)
    if rest - reserve(costs).usd <= LEAST:
        costs = ()
    rest = rest if rest > LEAST else budget
    summary = dollars(spent_on_summary(store, run, number), run.spec.model)
    return Allowance(max(rest - summary, LEAST), costs)


def left(store: RunStore, run: TaskRun, number: int = 0) -> float:
    """Return the cost limit with which attempt `number` starts, in dollars; 0: no limit. Number 0
    means the next attempt."""
    return allowance(store, run, number).usd()


def spent_on_summary(store: RunStore, run: TaskRun, number: int) -> Usage:
    """Return the usage of the turn in which attempt `number` asked the previous conversation for
    its summary; zero if there was no such turn."""
    spent = Usage()
    for record in store.run_events(run.id):
        if record.attempt == number and isinstance(record.event, Summarised):
            spent += record.event.usage
    return spent
