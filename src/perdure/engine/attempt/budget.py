"""What a run has spent, and what is left of its budget: over all attempts, rounds of checks
included, and while one is at work.

An agent that tells dollars is believed. One that tells tokens alone is reckoned by the list prices
of `pricing`, where its model is known: such a sum is good for a budget, and is shown beside one
only.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.engine.attempt.engine import HISTORY, Engine
from perdure.model import Attempt, TaskRun, Usage
from perdure.model.events import Summarised
from perdure.rules.pricing import cost, price_of

LEAST = 0.000001
"""The smallest budget, in dollars, that a CLI can be told."""


def dollars(usage: Usage, model: str) -> float:
    """What an attempt cost: by the agent's own word, else by the list."""
    price = None if usage.cost_usd else price_of(model)
    return usage.cost_usd if price is None else cost(usage, price)


def spent(attempts: Sequence[Attempt], model: str) -> float:
    """All of them together."""
    return sum(dollars(attempt.usage, model_of(attempt, model)) for attempt in attempts)


def model_of(attempt: Attempt, model: str) -> str:
    """The model that was at work, by its transcript; else the one that was asked for."""
    return (
        (attempt.fill.model if attempt.fill is not None else "")
        or attempt.flags.get("model")
        or model
    )


def left(engine: Engine, run: TaskRun, number: int = 0) -> float:
    """Return what attempt `number`, or the next one, may cost; 0: no limit. After a person allowed
    one more, it has the budget once again.

    Of the attempt itself only a summary that was asked for is taken off: one that was adopted has
    spent some already.
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
    """Return what the last turn of the conversation before cost, in this attempt."""
    records = engine.store.history(run.id, limit=HISTORY)
    spent = (
        record.event.usage
        for record in records
        if record.attempt == number and isinstance(record.event, Summarised)
    )
    return sum(spent, Usage())
