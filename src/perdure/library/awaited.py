"""The verbs for programs on an event loop: each step is done in a worker thread, so that no agent
blocks the loop.

`perdure.connect` opens it; an ordinary program loads none of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from perdure.attempt import Engine
from perdure.checkpoints import Restored
from perdure.events import Record
from perdure.library import Runner
from perdure.lifecycle import FINAL
from perdure.liveness import Liveness
from perdure.model import Attempt, Checkpoint, RunState, TaskRun, TaskSpec
from perdure.plan import PlanRun
from perdure.protocols import RunRow
from perdure.sessions.awaited import AsyncSessions

T = TypeVar("T")

POLL_S = 0.1


class AsyncRunner:
    """The verbs for an event loop. `async with` closes it."""

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
        await asyncio.to_thread(self._runner.close)

    @property
    def sessions(self) -> AsyncSessions:
        """The session service, awaited."""
        return AsyncSessions(self._runner.sessions)

    async def submit(self, prompt: str | TaskSpec, **fields: Any) -> TaskRun:
        """See `Runner.submit`."""
        return await asyncio.to_thread(self._runner.submit, prompt, **fields)

    async def follow(self, ref: str) -> TaskRun:
        """See `Runner.follow`. If the task that awaits it is cancelled, the run is stopped in good
        order first."""
        working = asyncio.ensure_future(_apart(partial(self._runner.follow, ref)))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.to_thread(self._runner.stop, ref)
            await working
            raise

    async def run(self, prompt: str | TaskSpec, **fields: Any) -> TaskRun:
        """See `Runner.run`."""
        files = {
            name: fields.pop(name) for name in ("files", "context", "on_edit") if name in fields
        }
        task = await asyncio.to_thread(self._runner._reachable, prompt, fields)
        return await self.follow((await self.submit(task, **files)).id)

    async def retry(
        self,
        ref: str,
        agent: str = "",
        *,
        continuity: str | None = None,
        model: str | None = None,
        budget_usd: float | None = None,
        timeout_s: float | None = None,
        attempts: int | None = None,
    ) -> TaskRun:
        """See `Runner.retry`, and `follow` for what becomes of a cancelled one."""
        given = {
            "continuity": continuity,
            "model": model,
            "budget_usd": budget_usd,
            "timeout_s": timeout_s,
            "attempts": attempts,
        }
        run = await asyncio.to_thread(partial(self._runner._again, ref, agent, **given))
        return run if run.state is RunState.SUCCEEDED else await self.follow(run.id)

    async def update(self, ref: str, prompt: str, **files: Any) -> TaskRun:
        """See `Runner.update`, and `follow` for what becomes of a cancelled one."""
        return await self.follow(
            (await asyncio.to_thread(self._runner._instruct, ref, prompt, **files)).id
        )

    async def plan_run(self, file: str | Path, jobs: int = 0) -> PlanRun:
        """See `Runner.plan_run`. If the task that awaits it is cancelled, the plan is stopped in
        good order first."""
        return await self._driven(lambda engine: self._runner._plan_run(engine, file, jobs))

    async def _driven(self, drive: Callable[[Engine], PlanRun]) -> PlanRun:
        stop, engine = threading.Event(), self._runner._engine
        listening = replace(engine, stopping=lambda: engine.stopping() or stop.is_set())
        working = asyncio.ensure_future(_apart(partial(drive, listening)))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            stop.set()
            await working
            raise

    async def plan_retry(self, name: str, task: str = "", jobs: int = 0) -> PlanRun:
        """See `Runner.plan_retry`. If the task that awaits it is cancelled, the plan is stopped in
        good order first."""
        return await self._driven(lambda engine: self._runner._plan_retry(engine, name, task, jobs))

    async def plan_report(self, name: str) -> dict[str, Any]:
        """See `Runner.plan_report`."""
        return await asyncio.to_thread(self._runner.plan_report, name)

    async def stop(self, ref: str) -> TaskRun:
        """See `Runner.stop`."""
        return await asyncio.to_thread(self._runner.stop, ref)

    async def get(self, ref: str) -> TaskRun:
        """See `Runner.get`."""
        return await asyncio.to_thread(self._runner.get, ref)

    async def runs(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        """See `Runner.runs`."""
        return await asyncio.to_thread(self._runner.runs, states, limit)

    async def attempts(self, ref: str) -> Sequence[Attempt]:
        """See `Runner.attempts`."""
        return await asyncio.to_thread(self._runner.attempts, ref)

    async def checkpoints(self, ref: str) -> Sequence[Checkpoint]:
        """See `Runner.checkpoints`."""
        return await asyncio.to_thread(self._runner.checkpoints, ref)

    async def restore(self, ref: str, number: int = 0, *, files_only: bool = False) -> Restored:
        """See `Runner.restore`."""
        return await asyncio.to_thread(self._runner.restore, ref, number, files_only=files_only)

    async def liveness(self, ref: str) -> Liveness | None:
        """See `Runner.liveness`."""
        return await asyncio.to_thread(self._runner.liveness, ref)

    async def report(self, ref: str) -> dict[str, Any]:
        """See `Runner.report`."""
        return await asyncio.to_thread(self._runner.report, ref)

    async def history(self, ref: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """See `Runner.history`."""
        return await asyncio.to_thread(self._runner.history, ref, after, limit)

    def spec(self, prompt: str, **settings: Any) -> TaskSpec:
        """See `Runner.spec`: it only reads settings, and blocks nothing."""
        return self._runner.spec(prompt, **settings)

    async def events(self, ref: str, after: int = 0) -> AsyncIterator[Record]:
        """The run's journal from `after` on, as it grows; ends when the run is final and all was
        given."""
        while True:
            final = (await self.get(ref)).state in FINAL
            records = await asyncio.to_thread(self._runner.history, ref, after)
            for record in records:
                after = record.seq
                yield record
            if final and not records:
                return
            if not records:
                await asyncio.sleep(POLL_S)


async def _apart(work: Callable[[], T]) -> T:
    """What lasts as long as an agent works, in a thread of its own. The loop's own threads are few
    (two cores: six): as many runs would leave none for what is asked meanwhile, nor for what stops
    them."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="run")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, copy_context().run, work)
    finally:
        thread.shutdown(wait=False)
