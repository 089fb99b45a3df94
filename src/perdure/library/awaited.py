"""The library for asyncio programs. Each call runs in a worker thread, so an agent never blocks the
event loop.

Programs get an `AsyncRunner` from `perdure.connect`, which imports this module when it is called.
Most methods are derived from the methods of `Runner` with the same names (`_awaited`), so each is
declared only once. The methods that follow a run are written here: if the asyncio task that awaits
one is cancelled, the run has to be stopped first.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from msgspec.structs import replace

from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.sessions.awaited import AsyncSessions
from perdure.errors import Conflict
from perdure.library.options import (
    OnEditText,
    PathText,
    PolicyOptions,
    RetryOptions,
    TaskOptions,
)
from perdure.library.results import RunResult
from perdure.library.runner import POLL_S, Runner, changes_of
from perdure.model import OnEdit, RunState, TaskRun, TaskSpec
from perdure.model.events import Record
from perdure.rules.lifecycle import FINAL
from perdure.rules.plan import PlanRun

P = ParamSpec("P")
T = TypeVar("T")


class _Method(Generic[P, T]):
    """The type of a method made by `_awaited`, for type checkers only. It is never instantiated."""

    @overload
    def __get__(
        self, instance: None, owner: type[AsyncRunner]
    ) -> Callable[Concatenate[AsyncRunner, P], Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(
        self, instance: AsyncRunner, owner: type[AsyncRunner]
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: AsyncRunner | None, owner: type[AsyncRunner]) -> Any: ...


def _awaited(method: Callable[Concatenate[Runner, P], T]) -> _Method[P, T]:
    """Return a method of `AsyncRunner` that calls `method` of `Runner` in a worker thread."""

    @wraps(method)
    async def call(self: AsyncRunner, *args: Any, **kwargs: Any) -> T:
        bound: Callable[..., T] = getattr(self._runner, method.__name__)
        return await asyncio.to_thread(bound, *args, **kwargs)

    return cast("_Method[P, T]", call)


class AsyncRunner:
    """The methods of `Runner` as coroutines, for asyncio programs. Use it with `async with`, which
    closes it at the end."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def __aenter__(self) -> AsyncRunner:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop running attempts gracefully, and close the store."""
        await asyncio.to_thread(self._runner.close)

    @property
    def settings(self) -> Settings:
        """The settings in force, as `perdure config show` prints them."""
        return self._runner.settings

    @property
    def sessions(self) -> AsyncSessions:
        """The session service, with coroutines as methods."""
        return AsyncSessions(self._runner.sessions)

    def spec(self, prompt: str, **options: Unpack[TaskOptions]) -> TaskSpec:
        """Return a validated TaskSpec. See `Runner.spec`. Not a coroutine, because it only reads
        settings and does not block."""
        return self._runner.spec(prompt, **options)

    submit = _awaited(Runner.submit)
    stop = _awaited(Runner.stop)
    requests = _awaited(Runner.requests)
    answer = _awaited(Runner.answer)
    get = _awaited(Runner.get)
    runs = _awaited(Runner.runs)
    attempts = _awaited(Runner.attempts)
    report = _awaited(Runner.report)
    work = _awaited(Runner.work)
    why = _awaited(Runner.why)
    liveness = _awaited(Runner.liveness)
    history = _awaited(Runner.history)
    logs = _awaited(Runner.logs)
    diff = _awaited(Runner.diff)
    conversations = _awaited(Runner.conversations)
    agents = _awaited(Runner.agents)
    prove = _awaited(Runner.prove)
    apply = _awaited(Runner.apply)
    open = _awaited(Runner.open)
    take_back = _awaited(Runner.take_back)
    checkpoints = _awaited(Runner.checkpoints)
    restore = _awaited(Runner.restore)
    export = _awaited(Runner.export)
    import_ = _awaited(Runner.import_)
    move_to = _awaited(Runner.move_to)
    move_from = _awaited(Runner.move_from)
    remove = _awaited(Runner.remove)
    reset = _awaited(Runner.reset)
    gc = _awaited(Runner.gc)
    trash = _awaited(Runner.trash)
    trash_restore = _awaited(Runner.trash_restore)
    trash_purge = _awaited(Runner.trash_purge)
    du = _awaited(Runner.du)
    plan_check = _awaited(Runner.plan_check)
    plan_report = _awaited(Runner.plan_report)

    async def follow(self, ref: str) -> RunResult:
        """Run the attempts of a run until it is final, and return it. See `Runner.follow`. If the
        awaiting task is cancelled, the run is first stopped gracefully."""
        working = asyncio.ensure_future(_in_thread(partial(self._runner.follow, ref)))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            # The run may have ended before the cancellation arrived. Then there is nothing to stop.
            with suppress(Conflict):
                await asyncio.to_thread(self._runner.stop, ref)
            with suppress(Conflict):
                await working
            raise

    async def _begin_and_follow(self, begin: Callable[[], TaskRun]) -> RunResult:
        """Call `begin` in a worker thread, and follow the run that it returns. If the awaiting task
        is cancelled meanwhile, the run is stopped as soon as `begin` has returned it."""
        beginning = asyncio.ensure_future(asyncio.to_thread(begin))
        try:
            run = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # The cancellation does not stop the worker thread. So wait for the run that the thread
            # creates, and stop it. Otherwise the run would stay queued, and nobody would follow it.
            await asyncio.wait([beginning])
            if beginning.exception() is None:
                with suppress(Conflict):
                    await asyncio.to_thread(self._runner.stop, beginning.result().id)
            raise
        if run.state is RunState.SUCCEEDED:
            return await self.get(run.id)
        return await self.follow(run.id)

    async def run(
        self,
        prompt: str | TaskSpec,
        *,
        files: Sequence[PathText] = (),
        context: PathText = "",
        on_edit: OnEditText = OnEdit.MERGE,
        include_changes: bool = False,
        **options: Unpack[TaskOptions],
    ) -> RunResult:
        """Accept a task and follow its run. See `Runner.run`; for cancellation, see `follow`."""
        runner = self._runner

        def begin() -> TaskRun:
            task = runner._task(prompt, options, "run")
            return runner._begin(task, runner._asked(files, context, on_edit), include_changes)

        return await self._begin_and_follow(begin)

    async def retry(
        self,
        ref: str,
        agent: str = "",
        **changes: Unpack[RetryOptions],
    ) -> RunResult:
        """Continue a run, and follow it. See `Runner.retry`; for cancellation, see `follow`."""
        wanted = changes_of(changes, "retry")
        return await self._begin_and_follow(partial(self._runner._again, ref, agent, wanted))

    async def update(
        self,
        ref: str,
        prompt: str,
        *,
        files: Sequence[PathText] = (),
        context: PathText = "",
        on_edit: OnEditText = OnEdit.MERGE,
        **policies: Unpack[PolicyOptions],
    ) -> RunResult:
        """Give a run new instructions, and follow it. See `Runner.update`; for cancellation, see
        `follow`."""
        asked, changes = (
            self._runner._asked(files, context, on_edit),
            changes_of(policies, "update"),
        )
        return await self._begin_and_follow(
            partial(self._runner._instruct, ref, prompt, asked, changes)
        )

    async def tell(self, ref: str, message: str, *, key: str = "") -> RunResult:
        """Send a message to the running agent. See `Runner.tell`."""
        return await asyncio.to_thread(partial(self._runner.tell, ref, message, key=key))

    async def resume(
        self, which: str, prompt: str = "", **options: Unpack[TaskOptions]
    ) -> RunResult:
        """Continue a chosen conversation, and follow its run. See `Runner.resume`; for
        cancellation, see `follow`."""
        return await self._begin_and_follow(partial(self._runner._resumed, which, prompt, options))

    async def fork(
        self,
        ref: str,
        prompt: str = "",
        *,
        turn: int = 0,
        checkpoint: int = 0,
        name: str = "",
        branch: str = "",
    ) -> RunResult:
        """Fork a run, and follow the new one. See `Runner.fork`; for cancellation, see `follow`."""
        return await self._begin_and_follow(
            partial(self._runner._forked, ref, prompt, turn, checkpoint, name, branch)
        )

    async def plan_run(self, file: PathText, jobs: int = 0) -> PlanRun:
        """Start or continue a plan. See `Runner.plan_run`. If the awaiting task is cancelled, the
        plan is first stopped gracefully."""
        return await self._driven(lambda engine: self._runner._plan_run(engine, file, jobs))

    async def plan_retry(self, name: str, task: str = "", jobs: int = 0) -> PlanRun:
        """Retry the failed tasks of a plan. See `Runner.plan_retry`. If the awaiting task is
        cancelled, the plan is first stopped gracefully."""
        return await self._driven(lambda engine: self._runner._plan_retry(engine, name, task, jobs))

    async def _driven(self, drive: Callable[[Engine], PlanRun]) -> PlanRun:
        stop, engine = threading.Event(), self._runner._engine
        listening = replace(engine, stopping=lambda: engine.stopping() or stop.is_set())
        working = asyncio.ensure_future(_in_thread(partial(drive, listening)))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            stop.set()
            await working
            raise

    async def events(self, ref: str, after: int = 0) -> AsyncIterator[Record]:
        """Yield the run's records with `seq` greater than `after`, as soon as they are stored. End
        when the run is final and all records were yielded."""
        while True:
            final = (await self.get(ref)).state in FINAL
            records = await self.history(ref, after)
            for record in records:
                after = record.seq
                yield record
            if final and not records:
                return
            if not records:
                await asyncio.sleep(POLL_S)


async def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, and return its result. `work` may last as long as an agent
    runs, and the event loop's default pool is small (six threads on two cores). If runs occupied
    all of these threads, no other call could start, not even one that stops a run."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="run")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, copy_context().run, work)
    finally:
        thread.shutdown(wait=False)
