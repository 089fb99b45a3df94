"""Builds the report of a plan that `--json` prints. The report is a stable, versioned object. All
its data comes from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from perdure.engine.attempt.engine import EngineStore
from perdure.engine.plans.status import (
    FROM_API,
    TaskStatus,
    blocked,
    can_continue,
    dependencies,
    has_inputs,
    spent,
    task_statuses,
)
from perdure.host import process
from perdure.host.process import Probe
from perdure.model import UNSHARED_HOST, Attempt, Host, RunState, TaskRun, Usage
from perdure.model.reports import (
    ConflictOfTask,
    PlanOfList,
    PlanReport,
    PlanResult,
    TaskOfPlan,
)
from perdure.rules.plan import PlanRun, PlanState
from perdure.rules.plan.conversations import joins, order

SCHEMA_VERSION: Final = 1


def report_of(store: EngineStore, plan: PlanRun, probe: Probe | None = None) -> PlanReport:
    """Return the object that `perdure plan run` and `plan show` print with --json. `probe`: checks
    the processes of this host; without it the liveness of tasks is unknown."""
    stands = task_statuses(store, plan)
    tasks = [_task(store, stands[task.name], stands, probe) for task in plan.plan.tasks]
    total = Usage()
    for stand in stands.values():
        total = total + _used(store, stand)
    return PlanReport(
        schema_version=SCHEMA_VERSION,
        id=plan.id,
        name=plan.name,
        state=state_of(store, plan, stands, probe.host if probe is not None else UNSHARED_HOST),
        reason=plan.reason,
        file=plan.file,
        repo=plan.seed.repo,
        base=plan.seed.base,
        jobs=plan.plan.jobs,
        policy=str(plan.plan.continuity),
        verify=plan.plan.verify,
        verified=plan.verified,
        tasks=tasks,
        usage=total,
        budget_usd=plan.plan.budget_usd,
        spent_usd=round(spent(store, plan), 6) if plan.plan.budget_usd else 0.0,
        result=_result(plan, stands[order(plan.plan)[-1].name]),
        created=plan.created,
        updated=plan.updated,
    )


def _result(plan: PlanRun, last: TaskStatus) -> PlanResult:
    """Return where the result of the plan can be found: the workdir and branch of its last task."""
    result = PlanResult(
        task=last.task.name,
        path="",
        branch="",
        backend="",
        run="",
        base=plan.seed.base,
        commit="",
    )
    if last.run is not None:
        result.run = last.run.name
        place = last.run.workspace
        if place is not None:
            result.path, result.branch = place.path, place.branch
            result.backend = str(place.backend)
    if last.end is not None:
        result.commit = last.end.commit
    return result


def state_of(
    store: EngineStore, plan: PlanRun, stands: Mapping[str, TaskStatus], host: Host
) -> str:
    """Return the state of the plan as one word: `running`, `succeeded`, `failed`, `queued` if
    `perdure serve` will start or continue it, or `stopped` if no process drives it."""
    if plan.state is not PlanState.OPEN:
        return str(plan.state)
    if plan.worker:
        alive = process.worker_alive(plan.worker, host)
    else:
        alive = False
    if alive or (alive is None and plan.lease_until >= store.now()):
        return "running"
    if plan.file == FROM_API and not plan.stopped and can_continue(stands):
        return "queued"
    return "stopped"


def row_of(store: EngineStore, plan: PlanRun, host: Host = UNSHARED_HOST) -> PlanOfList:
    """Return a row of the list that `perdure plan ls --json` prints."""
    stands = task_statuses(store, plan)
    return PlanOfList(
        name=plan.name,
        state=state_of(store, plan, stands, host),
        tasks=len(stands),
        done=sum(stand.end is not None for stand in stands.values()),
        file=plan.file,
        updated=plan.updated,
    )


def task_state(stand: TaskStatus, stands: Mapping[str, TaskStatus]) -> str:
    """Return the state of a task in one word: `waits`, `ready`, `blocked`, or the state of its run.
    A task whose run has succeeded counts as `running` until the end of the task is recorded."""
    if stand.end is not None:
        return str(RunState.SUCCEEDED)
    if stand.run is not None:
        if stand.run.state is RunState.SUCCEEDED:
            return str(RunState.RUNNING)
        return str(stand.run.state)
    if blocked(stand, stands):
        return "blocked"
    if has_inputs(stand, stands):
        return "ready"
    return "waits"


def _task(
    store: EngineStore, stand: TaskStatus, stands: Mapping[str, TaskStatus], probe: Probe | None
) -> TaskOfPlan:
    task = TaskOfPlan(
        name=stand.task.name,
        agent=stand.task.agent,
        needs=list(stand.task.needs),
        state=task_state(stand, stands),
        liveness=None,
        reason=_why(stand, stands),
        conversation=stand.strand.name,
        how=joins(stand.strand),
        instead=stand.strand.instead,
        run="",
        run_id="",
        attempts=0,
        session_id="",
        continuation=None,
        verdict=None,
        usage=_used(store, stand),
        files=list(stand.task.files),
        changed=[],
        merged=[],
        conflicts=[],
        branch="",
        path="",
        commit="",
        started=None,
        ended=None,
    )
    if stand.run is not None:
        _set_run(task, stand.run)
        _set_attempts(task, store.attempts(stand.run.id))
        if probe is not None:
            again = partial(store.get, stand.run.id)
            task.liveness = probe.liveness(stand.run, store.now(), again)
    if stand.planned is not None:
        task.merged = list(stand.planned.merged)
        conflicts = stand.planned.conflicts
        task.conflicts = [ConflictOfTask(file=file, reason=reason) for file, reason in conflicts]
    if stand.end is not None:
        task.changed = [name.encode("utf-8", "replace").decode() for name in stand.end.files]
        task.commit = stand.end.commit
    return task


def _set_run(task: TaskOfPlan, run: TaskRun) -> None:
    """Set the fields of a task that come from its run."""
    task.reason, task.run, task.run_id = run.reason, run.name, run.id
    if run.workspace is not None:
        task.branch, task.path = run.workspace.branch, run.workspace.path


def _set_attempts(task: TaskOfPlan, attempts: Sequence[Attempt]) -> None:
    """Set the fields of a task that come from the attempts of its run."""
    if not attempts:
        return
    first, last = attempts[0], attempts[-1]
    task.attempts = len(attempts)
    task.session_id = last.session_id
    task.started, task.ended = first.started, last.ended
    if first.continuation is not None:
        task.continuation = first.continuation.kind
    if last.receipt is not None:
        task.verdict = last.receipt.verdict


def _why(stand: TaskStatus, stands: Mapping[str, TaskStatus]) -> str:
    if failed := blocked(stand, stands):
        return f"{failed} failed"
    left = [name for name in dependencies(stand) if stands[name].end is None]
    if left:
        return f"needs {', '.join(left)}"
    return ""


def _used(store: EngineStore, stand: TaskStatus) -> Usage:
    total = Usage()
    for attempt in store.attempts(stand.run.id) if stand.run is not None else ():
        total = total + attempt.usage
    return total
