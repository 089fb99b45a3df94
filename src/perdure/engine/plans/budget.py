"""What a plan has spent, all tasks and attempts together, and what is left of its budget. Called by
`driver`, `starts`, `conclusion`.

Checked before a task begins or goes on; a run gets what is left then. Tasks at work side by side
share nothing: each may spend that.
"""

from __future__ import annotations

from perdure.engine.attempt import budget as spending
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.plans.status import standing
from perdure.rules.plan import PlanRun

LEAST = 0.01
"""Dollars for a run that began while others spent the rest: 0 would be no limit."""


def spent(store: EngineStore, plan: PlanRun) -> float:
    """Dollars, by the agents' own words or by the list prices."""
    runs = [stand.run for stand in standing(store, plan).values() if stand.run is not None]
    return sum(spending.spent(store.attempts(run.id), run.spec.model) for run in runs)


def over(store: EngineStore, plan: PlanRun) -> str:
    """That nothing is left, in a sentence; empty where something is, or no budget is set."""
    budget = plan.plan.budget_usd
    if not budget or (used := spent(store, plan)) < budget:
        return ""
    return (
        f"the budget is spent: ${used:.2f} of ${budget:.2f}; more in the file, then perdure plan "
        "retry FILE"
    )


def share(store: EngineStore, plan: PlanRun, own: float) -> float:
    """What a run may spend that begins now, where `own` is its limit by the settings; 0: no
    limit."""
    budget = plan.plan.budget_usd
    if not budget:
        return own
    left = max(budget - spent(store, plan), LEAST)
    return min(own, left) if own else left
