"""Computes what a run has spent and what is left of its budget. All attempts count, also one that
is still running, and so do rounds of checks.

If an agent reports dollars, they are used. If it reports only tokens, dollars are estimated from
the list prices of `pricing`, if its model is known. The estimate is good enough for a budget, and
is shown only if the run has a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.engine.attempt.engine import HISTORY, Engine
from perdure.model import Attempt, TaskRun, Usage
from perdure.model.events import Summarised
from perdure.rules.pricing import cost, price_of

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


def left(engine: Engine, run: TaskRun, number: int = 0) -> float:
    """Return what attempt `number`, or the next one, may cost, in dollars; 0: no limit. If nothing
    is left and a person allowed one more attempt, return the full budget again.

    The limit covers the whole attempt, also after it was adopted, so what the attempt itself has
    spent is not subtracted. The exception is its summary turn.
    """
    budget = run.spec.budget_usd
    if not budget:
        return 0.0
    others = [attempt for attempt in engine.store.attempts(run.id) if attempt.number != number]
    rest = budget - spent(others, run.spec.model)
    rest = rest if rest > LEAST else budget
    summary = dollars(spent_on_summary(engine, run, number), run.spec.model)
    return max(rest - summary, LEAST)


def spent_on_summary(engine: Engine, run: TaskRun, number: int) -> Usage:
    """Return the usage of the summary turn that this attempt asked of the previous conversation."""
    records = engine.store.history(run.id, limit=HISTORY)
    spent = (
        record.event.usage
        for record in records
        if record.attempt == number and isinstance(record.event, Summarised)
    )
    return sum(spent, Usage())
