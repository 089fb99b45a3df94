"""Drives the plans that the service received over the network. This happens in the process of the
service, while the runs are performed by its pool.

Called by `perdure serve` and by the API. A received plan is stored, so the service continues it
after a restart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from msgspec.structs import replace

from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.plans.creation import begin
from perdure.engine.plans.driver import check_retryable, claimed, queue_again, resume
from perdure.engine.plans.status import FROM_API, can_continue, task_statuses
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.host import process
from perdure.host.rounds import Rounds
from perdure.model import RunState, TaskSpec
from perdure.rules.lifecycle import FINAL
from perdure.rules.plan import Plan, PlanRun, PlanState

LOOK_S = 2.0
"""Interval in seconds at which the store is polled for plans. A call of `wake` ends the interval
early."""
AGAIN_S = 30.0
"""Delay in seconds before a plan is retried after a problem of perdure itself (a full disk, a
workdir in use)."""
PLANS_MOST = 200
HALT_S = 60.0
"""Maximum time in seconds to wait until a plan's thread stops. A merge or a check that the thread
performs is not interrupted."""


def take(engine: Engine, plan: Plan, seed: TaskSpec) -> PlanRun:
    """Store a plan and return it. If the same plan was received before, return the stored one.

    Raises Conflict if a different plan has the same name, and the errors of `begin`.
    """
    there: PlanRun | None
    try:
        there = begin(engine, plan, seed, Path(FROM_API))
    except Conflict:
        # An identical concurrent request may have stored the plan first.
        try:
            there = engine.store.plan(plan.name)
        except NotFound:
            there = None
        if there is None or not _is_same(there, plan):
            raise
        return there
    if not _is_same(there, plan):
        raise Conflict(
            f"Another plan has the name {plan.name}",
            "give this one another name; GET /api/v1/plans lists them",
        )
    return there


def _is_same(there: PlanRun, plan: Plan) -> bool:
    return there.name == plan.name and there.plan == plan and there.file == FROM_API


class PlanDriver:
    """Drives the plans that `take` has stored, each in its own thread. It is a context manager: the
    threads run until the `with` block ends. `say` is called with a line for each problem."""

    def __init__(self, engine: Engine, say: Callable[[str], None]) -> None:
        self._rounds = Rounds("plans", self._round, LOOK_S, self._failed)
        self._engine = replace(engine, stopping=lambda: self._rounds.is_over() or engine.stopping())
        self._say = say
        self._driven: dict[str, threading.Thread] = {}
        self._later: dict[str, float] = {}
        self._halted: set[str] = set()
        """Ids of the plans whose threads must not begin another task for now."""
        self._lock = threading.Lock()

    def __enter__(self) -> PlanDriver:
        self._rounds.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rounds.stop()
        for thread in self._driven.values():
            thread.join()

    def wake(self) -> None:
        """Check the stored plans now, without waiting for the end of the poll interval."""
        self._rounds.wake()

    def stop(self, ref: str) -> PlanRun:
        """Stop the running tasks of a plan, and start no other task until `retry`. Return the plan.

        Raises NotFound, and Conflict if another process drives the plan or it has succeeded.
        """
        with self._lock, self._require_not_driven(ref) as plan:
            if plan.state is PlanState.SUCCEEDED:
                raise Conflict(f"The plan {plan.name} has succeeded: there is nothing to stop")
            # The stop is stored before the runs are stopped. If the service is killed in between,
            # it starts no more tasks of the plan after its restart.
            plan = self._engine.store.put_plan(replace(plan, stopped=self._engine.store.now()))
            for stand in task_statuses(self._engine.store, plan).values():
                if stand.run is not None and stand.run.state not in FINAL:
                    with suppress(Conflict):
                        service.stop(self._engine, stand.run.id)
        return self._engine.store.plan(plan.id)

    def retry(self, ref: str, task: str = "") -> PlanRun:
        """Continue a plan, including its tasks that failed or were stopped. With `task`, retry only
        this task. Return the plan.

        Raises NotFound, and Conflict if another process drives the plan, or there is nothing to
        retry.
        """
        with self._lock, self._require_not_driven(ref) as plan:
            if plan.state is PlanState.SUCCEEDED:
                raise Conflict(f"The plan {plan.name} has succeeded: there is nothing to retry")
            if task:
                check_retryable(self._engine.store, plan, task)
            queue_again(self._engine, plan, (RunState.CANCELLED, RunState.FAILED), task)
            self._later.pop(plan.id, None)
        self.wake()
        return self._engine.store.plan(plan.id)

    @contextmanager
    def _require_not_driven(self, ref: str) -> Iterator[PlanRun]:
        """Hold a plan's lease for the `with` block, and yield the plan. First, the service's own
        thread for the plan is stopped; the plan's runs continue. Raises NotFound, Conflict."""
        plan = self._engine.store.plan(ref)
        if plan.file != FROM_API:
            raise Conflict(
                f"The plan {plan.name} was not started over the API",
                f"perdure plan retry {plan.name}, on its own machine",
            )
        self._halted.add(plan.id)
        try:
            thread = self._driven.get(plan.id)
            if thread is not None:
                thread.join(HALT_S)
            plan = claimed(
                self._engine.store,
                self._engine.host,
                self._engine.worker,
                self._engine.lease_s,
                self._engine.store.plan(plan.id),
            )
            try:
                yield plan
            finally:
                self._engine.store.release_plan(plan)
        finally:
            self._halted.discard(plan.id)

    def _round(self) -> None:
        """Start a thread for each plan that can continue."""
        for plan in self._due():
            self._later.pop(plan.id, None)
            self._driven[plan.id] = threading.Thread(
                target=self._drive, args=(plan,), name=f"plan {plan.name}", daemon=True
            )
            self._driven[plan.id].start()

    def _failed(self, error: Exception) -> None:
        self._say(f"plans: {error or type(error).__name__}")

    def _due(self) -> list[PlanRun]:
        """Return the plans that can continue and that no process drives. A plan whose unfinished
        tasks were all stopped or failed is not among them."""
        found = []
        for plan in self._engine.store.plans(PLANS_MOST):
            thread = self._driven.get(plan.id)
            is_driven = thread is not None and thread.is_alive()
            is_over = plan.file != FROM_API or plan.state is not PlanState.OPEN or plan.stopped > 0
            if (
                is_over
                or is_driven
                or plan.id in self._halted
                or self._later.get(plan.id, 0.0) > time.monotonic()
                or self._is_held(plan)
            ):
                continue
            if can_continue(task_statuses(self._engine.store, plan)):
                found.append(plan)
        return found

    def _is_held(self, plan: PlanRun) -> bool:
        """Return whether another process drives the plan, such as the service of another host or a
        `perdure plan retry`."""
        if not plan.worker:
            return False
        alive = process.worker_alive(plan.worker, self._engine.host)
        return bool(alive) or (alive is None and plan.lease_until >= self._engine.store.now())

    def _drive(self, plan: PlanRun) -> None:
        try:
            engine = replace(
                self._engine,
                stopping=lambda: plan.id in self._halted or self._engine.stopping(),
            )
            resume(engine, plan.id)
        except PerdureError as error:
            self._later[plan.id] = time.monotonic() + AGAIN_S
            self._say(f"plan {plan.name}: {error}")
