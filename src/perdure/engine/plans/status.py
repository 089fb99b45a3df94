"""Reads the progress of a plan from the store. Used by all modules of `plans`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from perdure.engine.attempt.engine import EngineStore
from perdure.errors import NotFound
from perdure.model import RunState, TaskRun
from perdure.rules.lifecycle import FINAL
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
    return any(True for _ in ready(stands)) or all(each.end is not None for each in stands.values())


def ready(stands: Mapping[str, TaskStatus]) -> Iterator[TaskStatus]:
    """Yield the tasks that may begin or continue now. A task that forks a conversation comes before
    the task that continues the same conversation. The caller must check that the forks listed in
    `Strand.lets` have been made."""
    able = [
        stand
        for stand in stands.values()
        if stand.end is None
        and not stand.failed
        and all(stands[name].end is not None for name in dependencies(stand))
    ]
    yield from sorted(able, key=lambda stand: bool(stand.strand.lets))
