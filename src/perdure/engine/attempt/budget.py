"""Computes what a run has spent and what is left of its budget. All attempts count, also one that
is still running, and so do rounds of checks.

If an agent reports dollars, they are used. If it reports only tokens, dollars are estimated from
the list prices of `pricing`, if its model is known. The estimate is good enough for a budget, and
is shown only if the run has a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from perdure.engine.attempt.engine import HISTORY
from perdure.model import Attempt, ReplyCosts, TaskRun, Usage
from perdure.model.events import Summarised
from perdure.protocols import RunStore
from perdure.rules.pricing import cost, price_of
from perdure.rules.reserve import Reserve, reserve

LEAST = 0.000001
"""Smallest budget that can be passed to a CLI, in dollars."""


def dollars(usage: Usage, model: str) -> float:
    """Return what an attempt cost, in dollars: as the agent reported it, else by the price list."""
    price = None if usage.cost_usd else price_of(model)
    if price is None:
        return usage.cost_usd
    return cost(usage, price)


def spent(attempts: Sequence[Attempt], model: str) -> float:
    """Return the cost of all attempts together, in dollars."""
    return sum(dollars(attempt.usage, model_of(attempt, model)) for attempt in attempts)


def model_of(attempt: Attempt, model: str) -> str:
    """Return the model that was used, by its transcript; else the one that was requested."""
    return (
        (attempt.fill.model if attempt.fill is not None else "")
        or attempt.flags.get("model")
        or model
    )


def reserved(attempts: Sequence[Attempt]) -> Reserve:
    """Return what replies that were cut off may have cost beyond what was charged for them."""
    return reserve(attempt.costs for attempt in attempts)


class Allowance(Struct, frozen=True):
    """The limit of an attempt's cost."""

    rest: float = 0.0
    """The rest of the budget, in dollars; 0: no limit."""
    costs: tuple[ReplyCosts, ...] = ()
    """The costs of the other attempts' replies, for which a reserve is kept."""

    def usd(self, dearest: float = 0.0) -> float:
        """Return the limit, in dollars; 0: no limit. `dearest`: the cost of the attempt's dearest
        reply so far."""
        if not self.rest:
            return 0.0
        return max(self.rest - reserve(self.costs, dearest).usd, LEAST)

    @property
    def varies(self) -> bool:
        """Return whether the limit depends on the attempt's dearest reply."""
        return bool(self.rest) and any(each.cut for each in self.costs)


def allowance(store: RunStore, run: TaskRun, number: int = 0) -> Allowance:
    """Return what attempt `number`, or the next one, may cost. If nothing is left, a person has
    allowed one more attempt: it gets what is left without the reserve, or the full budget again.

    The limit covers the whole attempt, also after it was adopted, so what the attempt itself has
    spent is not subtracted. The exception is its summary turn.
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
    """Return the limit of attempt `number`, or of the next one, at its start, in dollars; 0: no
    limit."""
    return allowance(store, run, number).usd()


def spent_on_summary(store: RunStore, run: TaskRun, number: int) -> Usage:
    """Return the usage of the summary turn that this attempt asked of the previous conversation."""
    records = store.history(run.id, limit=HISTORY)
    spent = (
        record.event.usage
        for record in records
        if record.attempt == number and isinstance(record.event, Summarised)
    )
    return sum(spent, Usage())
