"""Computes what a plan has spent in all its tasks and attempts, and what is left of its budget.
Called by `driver`, `starts`, `conclusion`.

The budget is checked before a task begins or continues; a run then gets all that is left.
Concurrent tasks do not share: each may spend that amount.
"""

from __future__ import annotations

from perdure.engine.attempt import budget as spending
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.plans.status import standing
from perdure.rules.plan import PlanRun

LEAST = 0.01
"""Budget in dollars of a run that starts after concurrent tasks have spent the rest. It is not 0,
because 0 means no limit."""


def spent(store: EngineStore, plan: PlanRun) -> float:
    """Return the dollars spent, as the agents report or by list prices."""
    runs = [stand.run for stand in standing(store, plan).values() if stand.run is not None]
    return sum(spending.spent(store.attempts(run.id), run.spec.model) for run in runs)


def over(store: EngineStore, plan: PlanRun) -> str:
    """Return a sentence if the budget is spent; empty if something is left or no budget is set."""
    budget = plan.plan.budget_usd
    if not budget or (used := spent(store, plan)) < budget:
        return ""
    return (
        f"the budget is spent: ${used:.2f} of ${budget:.2f}; raise it in the file, then perdure "
        f"plan retry FILE"
    )


def share(store: EngineStore, plan: PlanRun, own: float) -> float:
    """Return the budget of a run that begins now. `own`: its limit by the settings. 0 means no
    limit."""
    budget = plan.plan.budget_usd
    if not budget:
        return own
    left = max(budget - spent(store, plan), LEAST)
    if own:
        return min(own, left)
    return left
