"""Computes what a plan has spent in all its tasks and attempts, and what is left of its budget.
Called by `driver`, `starts`, `conclusion`.

The budget is checked before a task begins or continues. The budget of a new run is everything that
is left of the plan's budget. It is not divided among concurrent tasks, so together they may spend
more than the plan's budget.
"""

from __future__ import annotations

from perdure.engine.attempt import budget as spending
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.plans.status import task_statuses
from perdure.rules.plan import PlanRun
from perdure.rules.reserve import NO_RESERVE, Reserve, may_have_cost

LEAST = 0.01
"""Smallest budget that a run can get, in dollars. A run gets it if the other tasks have already
spent the plan's budget. It is not 0, because 0 means no limit."""


def spent(store: EngineStore, plan: PlanRun) -> float:
    """Return the dollars that the plan has spent, as reported by the agents or computed from list
    prices."""
    return _sums(store, plan)[0]


def _sums(store: EngineStore, plan: PlanRun) -> tuple[float, Reserve]:
    """Return the dollars that the plan has spent, and the reserve. The reserve estimates the cost
    of replies that were interrupted before the agent reported their cost."""
    runs = [stand.run for stand in task_statuses(store, plan).values() if stand.run is not None]
    used, kept = 0.0, NO_RESERVE
    for run in runs:
        attempts = store.attempts(run.id)
        used += spending.spent(attempts, run.spec.model)
        kept += spending.reserved(attempts)
    return used, kept


def overspent(store: EngineStore, plan: PlanRun) -> str:
    """Return a sentence for the user if the plan's budget is spent, or may be spent because the
    cost of some replies is unknown. Return an empty text otherwise, and if the plan has no budget.
    """
    budget = plan.plan.budget_usd
    if not budget:
        return ""
    used, kept = _sums(store, plan)
    if used + kept.usd < budget:
        return ""
    raise_it = "raise it in the file, then perdure plan retry FILE"
    if used >= budget:
        return f"the budget is spent: ${used:.2f} of ${budget:.2f}; {raise_it}"
    return (
        f"the budget may be spent: ${used:.2f} of ${budget:.2f} is charged, "
        f"{may_have_cost(kept)}; {raise_it}"
    )


def share(store: EngineStore, plan: PlanRun, own: float) -> float:
    """Return the budget in dollars for a run that begins now; 0 means no limit. `own`: the limit of
    a single run according to the settings."""
    budget = plan.plan.budget_usd
    if not budget:
        return own
    used, kept = _sums(store, plan)
    left = max(budget - used - kept.usd, LEAST)
    if own:
        return min(own, left)
    return left
