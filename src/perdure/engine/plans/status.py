"""Reads from the store how far a plan is, what it has spent in all its tasks and attempts, and what
is left of its budget. Used by all modules of `plans`.

The budget is checked before a task begins or continues. The budget of a new run is everything that
is left of the plan's budget. It is not divided among concurrent tasks, so together they may spend
more than the plan's budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from perdure.engine.attempt import budget as spending
from perdure.engine.attempt.engine import EngineStore
from perdure.errors import NotFound
from perdure.model import RunState, TaskRun
from perdure.rules.lifecycle import FINAL, NO_RESERVE, Reserve, may_have_cost
from perdure.rules.plan import PlannedRun, PlanRun, PlanTask, Strand, TaskEnd

FROM_API = "(api)"
"""Text in place of the file name for a plan that was received over the API."""


class TaskStatus(Struct, frozen=True, kw_only=True):
    """The present state of one task. `run` is None before the task begins, and also after a person
    has removed its run from the list."""

    task: PlanTask
    strand: Strand
    planned: PlannedRun | None = None
    run: TaskRun | None = None

    @property
    def end(self) -> TaskEnd | None:
        """Commit, checkpoint and turn at which the task ended; None until the task is done."""
        if self.planned is not None:
            return self.planned.end
        return None

    @property
    def failed(self) -> bool:
        """Whether the run failed or was stopped. A person must decide whether to continue it."""
        return (
            self.end is None
            and self.run is not None
            and self.run.state in FINAL - {RunState.SUCCEEDED}
        )


def task_statuses(store: EngineStore, plan: PlanRun) -> dict[str, TaskStatus]:
    """Return the status of each task by the task's name, in the order of the plan's file."""
    planned = {each.task: each for each in store.planned(plan.id)}
    stands = {}
    for task in plan.plan.tasks:
        there = planned.get(task.name)
        stands[task.name] = TaskStatus(
            task=task, strand=plan.strands[task.name], planned=there, run=_run(store, there)
        )
    return stands


def _run(store: EngineStore, planned: PlannedRun | None) -> TaskRun | None:
    try:
        if planned is not None:
            return store.get(planned.run)
        return None
    except NotFound:
        return None


def dependencies(stand: TaskStatus) -> tuple[str, ...]:
    """Return the names of the tasks that must be done before this one begins."""
    strand = stand.strand
    return tuple(
        dict.fromkeys(name for name in (*stand.task.needs, strand.goes_on, strand.files_of) if name)
    )


def blocked(stand: TaskStatus, stands: Mapping[str, TaskStatus]) -> str:
    """Return the name of a failed task that keeps this one from starting; empty if there is
    none."""
    seen, left = set[str](), list(dependencies(stand))
    while left:
        name = left.pop(0)
        if (
            stands[name].failed
            and (run := stands[name].run) is not None
            and run.state is RunState.FAILED
        ):
            return name
        if name not in seen:
            seen.add(name)
            left += dependencies(stands[name])
    return ""


def can_continue(stands: Mapping[str, TaskStatus]) -> bool:
    """Return whether something remains to be done without a person: a task can begin or continue,
    or all tasks are done and only the end of the plan is left."""
    return next(ready(stands), None) is not None or all(
        each.end is not None for each in stands.values()
    )


def ready(stands: Mapping[str, TaskStatus]) -> Iterator[TaskStatus]:
    """Yield the tasks that may begin or continue now. A task that forks a conversation comes before
    the task that continues the same conversation. The caller must check that the forks listed in
    `Strand.lets` have been made."""
    able = []
    for stand in stands.values():
        if stand.end is None and not stand.failed and has_inputs(stand, stands):
            able.append(stand)
    yield from sorted(able, key=lambda stand: bool(stand.strand.lets))


def has_inputs(stand: TaskStatus, stands: Mapping[str, TaskStatus]) -> bool:
    """Return whether all tasks that the task depends on have ended."""
    return all(stands[name].end is not None for name in dependencies(stand))


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
    runs = []
    for stand in task_statuses(store, plan).values():
        if stand.run is not None:
            runs.append(stand.run)
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
