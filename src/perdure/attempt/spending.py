"""What a run has spent, and what is left of its budget: over all attempts, rounds of checks included, and while one is at work.

An agent that tells dollars is believed. One that tells tokens alone is reckoned by the list prices of `pricing`, where its model is known:
such a sum is good for a budget, and is shown beside one only.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.attempt.engine import Engine
from perdure.model import Attempt, TaskRun, Usage
from perdure.pricing import cost, price_of


def dollars(usage: Usage, model: str) -> float:
    """What an attempt cost: by the agent's own word, else by the list."""
    price = None if usage.cost_usd else price_of(model)
    return usage.cost_usd if price is None else cost(usage, price)


def spent(attempts: Sequence[Attempt], model: str) -> float:
    """All of them together."""
    return sum(dollars(attempt.usage, model_of(attempt, model)) for attempt in attempts)


def model_of(attempt: Attempt, model: str) -> str:
    """The model that was at work, by its transcript; else the one that was asked for."""
    return (attempt.fill.model if attempt.fill is not None else "") or attempt.flags.get("model") or model


def left(engine: Engine, run: TaskRun) -> float:
    """What the next attempt may cost; 0: no limit. After a person allowed one more, it has the budget once again."""
    budget = run.spec.budget_usd
    rest = budget - spent(engine.store.attempts(run.id), run.spec.model)
    return rest if rest > 0 else budget
