"""Drives a plan: starts every task that may begin, up to the maximum number of jobs, until all are
done or nothing can continue. Called by the command, the library and the service.

Each task has a thread, which creates its run, follows it (`follow_run`), and records its end. This
works whether this process performs the run, a pool has claimed it first, or its supervisor has
died. A task that fails stops only the tasks that need it. After a problem of perdure itself (a full
disk, a workdir in use) nothing new starts, running tasks finish, and the error is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Event

from msgspec.structs import replace

from perdure.agents.transcripts import locate, snapshot
from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore, unavailable_reason
from perdure.engine.plans.conclusion import conclude, record_task_end
from perdure.engine.plans.creation import begin, find, take_changes
from perdure.engine.plans.starts import start
from perdure.engine.plans.status import (
    FROM_API,
    TaskStatus,
    blocked,
    overspent,
    ready,
    task_statuses,
)
from perdure.engine.sessions.service import plan_scope
from perdure.engine.worker import MARGIN, drive, follow
from perdure.errors import Conflict, LostLease, NotFound
from perdure.host import process
from perdure.host.wakeup import ring
from perdure.model import Host, RunState, SessionKey, SessionState, TaskRun, TaskSpec
from perdure.protocols import Publisher
from perdure.rules.lifecycle import FINAL
from perdure.rules.plan import Plan, PlanRun, PlanState

NAP_S = 0.3


def await_run(engine: Engine, run_id: str) -> TaskRun:
    """Wait for a run that a pool performs, and return it when it has ended. If perdure is asked to
    stop, return it earlier, in its present state."""
    ring(engine.state)
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping():
            return run
        time.sleep(NAP_S)


def follow_run(engine: Engine, run_id: str) -> TaskRun:
    """Perform the run, or follow it if another process performs it. Return the run when it has
    ended. If perdure is asked to stop, return it earlier, in its present state. Raises Conflict
    while another run uses the same workdir."""
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping():
            return run
        if run.state is RunState.RUNNING:
            follow(engine, run_id, lambda record: None)
            continue
        try:
            drive(engine, run_id)
        except Conflict:
            now = engine.store.get(run_id)
            # A pool may have claimed the run before this process could. The pool does the same
            # work, and may already have finished, so this conflict is ignored.
            if now.state is RunState.QUEUED and now.attempt == run.attempt:
                raise
        if engine.store.get(run_id).state is RunState.QUEUED:
            # The run waits for a person, or another process has claimed and returned it. Its state
            # is read again after a pause.
            time.sleep(NAP_S)


BEATS = 4
"""Number of times that the lease is renewed within its duration."""

Began = Callable[[PlanRun], None]


def run(
    engine: Engine,
    plan: Plan,
    seed: TaskSpec,
    file: Path,
    jobs: int = 0,
    began: Began = lambda plan: None,
) -> PlanRun:
    """Start or continue the plan until it is done, no task can start any more, or perdure is asked
    to stop. Return the plan.

    `jobs`: maximum number of concurrent tasks (0: the number that the plan sets). `began`: called
    once this process holds the plan's lease. Stopped tasks are continued; failed tasks wait for
    `retry`.

    Raises PlanError if the changes of the file are no longer allowed, Conflict while another
    process runs the plan, and all errors that the start of a task can raise.
    """
    return _drive(engine, begin(engine, plan, seed, file), plan, jobs, began, (RunState.CANCELLED,))


def retry(
    engine: Engine,
    ref: str,
    task: str = "",
    jobs: int = 0,
    began: Began = lambda plan: None,
    changed: tuple[Plan, TaskSpec, Path] | None = None,
) -> PlanRun:
    """Continue a plan, including its tasks that failed or were stopped, and return the plan.
    `task`: retry only this task. `changed`: plan, seed and file as for `run`, to apply changes of
    the plan's file; `ref` is then ignored. Raises NotFound, Conflict, PlanError."""
    plan = find(engine.store, engine.workspaces, *changed) if changed else engine.store.plan(ref)
    if task:
        check_retryable(engine.store, plan, task)
    return _drive(
        engine,
        plan,
        changed[0] if changed else plan.plan,
        jobs,
        began,
        (RunState.CANCELLED, RunState.FAILED),
        task,
    )


def resume(engine: Engine, ref: str) -> PlanRun:
    """Continue a plan whose runs are performed by a pool, and return the plan. Stopped and failed
    tasks wait for a person. Raises the same errors as `run`."""
    plan = engine.store.plan(ref)
    return _drive(engine, plan, plan.plan, 0, lambda plan: None, (), pooled=True)


def exit_code(store: EngineStore, plan: PlanRun) -> int:
    """Return the exit code for a plan: 0 if it succeeded, 130 if it was stopped, 75 if a task
    waits. If the plan failed, the code is 1, or that of a failed run, such as 3 if a person is
    needed. It is also 3 if the budget is spent."""
    if plan.state is PlanState.SUCCEEDED:
        return 0
    runs = []
    for stand in task_statuses(store, plan).values():
        if stand.run is not None and stand.end is None:
            runs.append(stand.run)
    failed = []
    for run in runs:
        if run.state is RunState.FAILED:
            failed.append(service.exit_code(run, service.last_outcome(store, run)))
    if failed or plan.state is PlanState.FAILED:
        return next((code for code in failed if code != 1), 3 if overspent(store, plan) else 1)
    if any(run.state is RunState.CANCELLED for run in runs) or not runs:
        return 130
    return 75


def continue_command(plan: PlanRun) -> str:
    """Return the command that continues the plan. It contains the plan's file, or the plan's name
    if the plan was received over the API."""
    if plan.file == FROM_API:
        return f"perdure plan retry {plan.name}"
    return f"perdure plan run {plan.file}"


def claimed(store: EngineStore, host: Host, worker: str, lease_s: float, plan: PlanRun) -> PlanRun:
    """Claim the plan and return it. Raises Conflict while another live process holds the plan's
    lease."""
    if plan.worker:
        alive = process.worker_alive(plan.worker, host)
        if alive or (alive is None and plan.lease_until + MARGIN * lease_s * 1000 >= store.now()):
            name, _, pid, _ = plan.worker.rsplit(":", 3)
            raise Conflict(
                f"The plan {plan.name} is being run by process {pid} on {name}",
                f"perdure plan show {plan.name}",
            )
    held = store.claim_plan(plan, worker, lease_s)
    if held is None:
        raise Conflict(
            f"Another process has just started the plan {plan.name}",
            f"perdure plan show {plan.name}",
        )
    return held


def queue_again(
    engine: Engine, plan: PlanRun, again: tuple[RunState, ...], task: str = ""
) -> PlanRun:
    """Queue the plan's runs that ended in one of the states `again`. With `task`, queue only the
    run of this task. If failed runs are queued, also reset the number of corrections at the end of
    the plan. Return the plan, whose state is open afterwards. The caller must hold the plan's
    lease."""
    for stand in task_statuses(engine.store, plan).values():
        if (
            stand.failed
            and stand.run is not None
            and stand.run.state in again
            and task in ("", stand.task.name)
        ):
            service.retry(engine, stand.run.id)
    if plan.state is not PlanState.OPEN or plan.stopped:
        plan = engine.store.put_plan(replace(plan, state=PlanState.OPEN, reason="", stopped=0))
    for planned in engine.store.planned(plan.id) if RunState.FAILED in again else ():
        if planned.checks:
            engine.store.put_planned(plan, replace(planned, checks=0))
    return plan


def check_retryable(store: EngineStore, plan: PlanRun, task: str) -> None:
    """Check that the plan has this task, and that the task failed or was stopped. Raises NotFound
    or Conflict otherwise."""
    stands = task_statuses(store, plan)
    if task not in stands:
        raise NotFound(
            f"The plan {plan.name} has no task {task!r}", f"perdure plan show {plan.name}"
        )
    if stands[task].end is not None:
        run = stands[task].run
        name = run.name if run else task
        raise Conflict(
            f"{task} is done: there is nothing to retry",
            f'perdure update {name} "new instructions"',
        )
    if not stands[task].failed:
        raise Conflict(
            f"{task} has not failed", f"{continue_command(plan)} continues what can continue"
        )


def _drive(
    engine: Engine,
    plan: PlanRun,
    wanted: Plan,
    jobs: int,
    began: Began,
    again: tuple[RunState, ...],
    task: str = "",
    *,
    pooled: bool = False,
) -> PlanRun:
    if plan.state is PlanState.SUCCEEDED and wanted == plan.plan:
        return plan
    _check_results_are_here(engine.store, engine.host, engine.publisher, plan)
    plan = claimed(engine.store, engine.host, engine.worker, engine.lease_s, plan)
    lost = Event()
    engine = replace(engine, stopping=_any_of(engine.stopping, lost))
    try:
        plan = take_changes(engine, plan, wanted)
        began(plan)
        plan = queue_again(engine, plan, again, task)
        plan = _Driving(
            engine, plan, jobs or plan.plan.jobs, lost, await_run if pooled else follow_run
        ).to_the_end()
    finally:
        engine.store.release_plan(plan)
    return engine.store.plan(plan.id)


def _check_results_are_here(
    store: EngineStore, host: Host, publisher: Publisher | None, plan: PlanRun
) -> None:
    """Raise Conflict if the results of a task are on another host and cannot be moved to this one.
    Commits that other tasks merge or start from can never be moved."""
    branches = any(strand.files_of or strand.merges for strand in plan.strands.values())
    for stand in task_statuses(store, plan).values():
        run = stand.run
        if run is None or not host.elsewhere(run):
            continue
        why = unavailable_reason(host, publisher, run) or (
            f"the branches to merge are on {run.host_name}" if branches else ""
        )
        if why:
            raise Conflict(
                f"The plan {plan.name} cannot continue here: {why} ({run.name})",
                f"{continue_command(plan)}, on {run.host_name}",
            )


def _any_of(stopping: Callable[[], bool], lost: Event) -> Callable[[], bool]:
    return lambda: stopping() or lost.is_set()


class _Driving:
    """Drives one plan in this process until it ends."""

    def __init__(
        self,
        engine: Engine,
        plan: PlanRun,
        jobs: int,
        lost: Event,
        follow: Callable[[Engine, str], TaskRun],
    ) -> None:
        self._follow = follow
        self._engine, self._plan, self._jobs, self._lost = engine, plan, jobs, lost
        self._at_work: dict[Future[object], str] = {}
        self._troubles: list[BaseException] = []
        self._beat = time.monotonic()

    def to_the_end(self) -> PlanRun:
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="task") as threads:
            while True:
                stands = task_statuses(self._engine.store, self._plan)
                if not self._troubles and not self._engine.stopping():
                    self._begin(threads, stands)
                if not self._at_work:
                    break
                self._wait()
            if self._troubles:
                raise self._troubles[0]
            is_complete = all(stand.end is not None for stand in stands.values())
            if is_complete and not self._engine.stopping():
                conclusion = partial(conclude, self._engine, self._plan, stands, self._follow)
                self._submit(threads, "", conclusion)
                while self._at_work:
                    self._wait()
                if self._troubles:
                    raise self._troubles[0]
                return self._engine.store.plan(self._plan.id)
        return self._conclude_if_stuck(stands)

    def _begin(self, threads: ThreadPoolExecutor, stands: Mapping[str, TaskStatus]) -> None:
        spent = overspent(self._engine.store, self._plan)
        for stand in ready(stands):
            name = stand.task.name
            if spent and not (stand.run is not None and stand.run.state is RunState.SUCCEEDED):
                continue
            if len(self._at_work) >= self._jobs:
                return
            if name not in self._at_work.values() and all(
                self._is_forked(stands[fork], stands) for fork in stand.strand.lets
            ):
                self._submit(threads, name, partial(self._task, stand, stands))

    def _submit(self, threads: ThreadPoolExecutor, name: str, job: Callable[[], object]) -> None:
        self._at_work[threads.submit(job)] = name

    def _wait(self) -> None:
        """Wait until a thread has ended or the poll interval has passed. Then renew the lease if
        the next renewal is due."""
        ended, _ = wait(self._at_work, NAP_S, FIRST_COMPLETED)
        for future in ended:
            del self._at_work[future]
            if (trouble := future.exception()) is not None:
                self._troubles.append(trouble)
        if time.monotonic() - self._beat >= self._engine.lease_s / BEATS:
            self._beat = time.monotonic()
            try:
                self._engine.store.renew_plan(self._plan, self._engine.lease_s)
            except LostLease as lost:
                self._lost.set()
                self._troubles.insert(0, lost)

    def _task(self, stand: TaskStatus, stands: Mapping[str, TaskStatus]) -> None:
        """Run one task to its end: create its run or continue the existing one, and record its
        end."""
        run = self._follow(
            self._engine,
            start(
                self._engine.store,
                self._engine.workspaces,
                self._engine.map_when,
                self._engine.stopping,
                self._plan,
                stand,
                stands,
            ).id,
        )
        if run.state is RunState.SUCCEEDED:
            by_task = {each.task: each for each in self._engine.store.planned(self._plan.id)}
            planned = by_task[stand.task.name]
            record_task_end(self._engine, self._plan, planned, run)

    def _is_forked(self, fork: TaskStatus, stands: Mapping[str, TaskStatus]) -> bool:
        """Return whether the conversation from which `fork` branches off may continue. It may
        continue once the fork has its own copy of the conversation, with the fork's prompt in it.
        It may also continue if the fork cannot begin soon, because it failed or waits for a failed
        task."""
        if fork.end is not None or fork.failed or blocked(fork, stands):
            return True
        return fork.run is not None and self._has_begun(
            fork.run, plan_scope(self._plan.id, fork.strand.name)
        )

    def _has_begun(self, run: TaskRun, scope: str) -> bool:
        engine = self._engine
        session = engine.store.session(SessionKey(run.spec.agent, scope))
        if session is None or session.state is SessionState.CONFIRMED or not run.spec.forks:
            return session is not None
        driver = engine.driver(run.spec.agent)
        home = driver.home({**engine.environ, **run.spec.env})
        found = snapshot(
            driver, locate(driver, home, session.id, engine.state / "runs" / run.id / "fork")
        )
        return found is not None and found.turns > 0

    def _conclude_if_stuck(self, stands: Mapping[str, TaskStatus]) -> PlanRun:
        """End the plan if none of its tasks can start any more, and return it. Its state becomes
        failed if tasks failed or the budget is spent; otherwise it does not change."""
        failed = []
        for name, stand in stands.items():
            if stand.failed and stand.run and stand.run.state is RunState.FAILED:
                failed.append(name)
        if not failed:
            return self._conclude_overspent()
        waiting = [name for name, stand in stands.items() if stand.end is None and not stand.failed]
        reason = f"{', '.join(failed)} failed" + (
            f"; {len(waiting)} task(s) wait for it" if waiting else ""
        )
        return self._engine.store.put_plan(
            replace(self._plan, state=PlanState.FAILED, reason=reason)
        )

    def _conclude_overspent(self) -> PlanRun:
        """End a plan that cannot continue although none of its tasks failed, and return it. Its
        state becomes failed if the budget is spent; otherwise it does not change."""
        if self._engine.stopping():
            reason = ""
        else:
            reason = overspent(self._engine.store, self._plan)
        if reason:
            return self._engine.store.put_plan(
                replace(self._plan, state=PlanState.FAILED, reason=reason)
            )
        return self._plan
