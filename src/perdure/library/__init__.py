"""perdure for Python programs: the same verbs as the command, typed. Opened by `perdure.open` and
`perdure.connect`.

    with perdure.open() as runner:                       # for ordinary programs
        run = runner.run("Fix the failing test", agent="claude", repo="path/to/repository")

    async with perdure.connect() as runner:              # for programs on an event loop
        run = await runner.submit("Fix the failing test")
        following = asyncio.create_task(runner.follow(run.name))
        async for record in runner.events(run.name):
            print(record.event)

Both doors lead to one engine (`awaited` is the second one). What goes wrong with perdure itself is
a PerdureError; how the agent did is in the run. Signals are the program's own business.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perdure import plans, service, specification
from perdure.attempt import Engine
from perdure.bell import ring
from perdure.checkpoints import Restored, restore
from perdure.config import Settings
from perdure.config.reading import load
from perdure.errors import Conflict, UsageError
from perdure.events import Record
from perdure.liveness import Liveness
from perdure.model import Attempt, Checkpoint, OnEdit, RunState, TaskRun, TaskSpec
from perdure.plan import PlanRun
from perdure.plans.reading import read_plan, seed_of
from perdure.protocols import Observer, RunRow
from perdure.sessions import Sessions
from perdure.taskfiles import Asked
from perdure.wiring import open_engine
from perdure.worker import drive
from perdure.worker import follow as watch

if TYPE_CHECKING:
    from perdure.library.awaited import AsyncRunner


class Runner:
    """The verbs, one after the other. Close it, or use it in a `with`: a running attempt is then
    stopped in good order."""

    def __init__(
        self,
        settings: Settings,
        cwd: Path,
        environ: Mapping[str, str],
        observers: Sequence[Observer] = (),
    ) -> None:
        self._settings = settings
        self._cwd = cwd
        self._stop = threading.Event()
        self._engine = replace(
            open_engine(settings, environ, observers), stopping=self._stop.is_set
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what runs, in good order, and closes the store."""
        self._stop.set()
        if self._engine.warm is not None:
            self._engine.warm.close()
        self._engine.store.close()

    def spec(self, prompt: str, **settings: Any) -> TaskSpec:
        """A TaskSpec from the prompt, the settings of this machine, and the fields that are given.
        Raises TypeError."""
        chosen = self._settings
        given: dict[str, Any] = {
            "agent": chosen.agent,
            "model": chosen.model,
            "permissions": chosen.permissions,
            "continuity": chosen.continuity,
            "attempts": chosen.attempts,
            "timeout_s": chosen.timeout,
            "stall_s": chosen.stall,
            "budget_usd": chosen.budget_usd,
            "verify": chosen.verify,
            "verify_rounds": chosen.verify_rounds,
            "verify_timeout_s": chosen.verify_timeout,
        }
        if not settings.keys() & {"here", "service"}:
            given |= {"backend": chosen.backend, "base": chosen.base}
        if not settings.keys() & {"repo", "here", "service"}:
            settings["repo"] = str(self._cwd)
        return TaskSpec(prompt=prompt, **{**given, **settings})

    def submit(
        self,
        prompt: str | TaskSpec,
        *,
        files: Sequence[str | Path] = (),
        context: str | Path = "",
        on_edit: str = OnEdit.MERGE,
        **fields: Any,
    ) -> TaskRun:
        """Accepts a task and returns at once; a pool (`perdure work`) begins it, or `follow` does.

        `files` (`PATH` or `PATH=DEST`) and all files below `context` are put into the workdir;
        `on_edit` says what becomes of one that the agent has edited: `keep`, `replace` or `merge`.
        """
        run = self._accept(prompt, fields, self._asked(files, context, on_edit))
        ring(self._engine.state)
        return run

    def follow(self, ref: str) -> TaskRun:
        """Works on a run until it is final; where a pool is at it already, waits for that. Raises
        Conflict if its workdir or conversation is in use by another run."""
        run_id = self._engine.store.get(ref).id
        try:
            return drive(self._engine, run_id)
        except Conflict:
            if self._engine.store.get(run_id).state is not RunState.RUNNING:
                raise
            return watch(self._engine, run_id, lambda record: None)

    def run(
        self,
        prompt: str | TaskSpec,
        *,
        files: Sequence[str | Path] = (),
        context: str | Path = "",
        on_edit: str = OnEdit.MERGE,
        **fields: Any,
    ) -> TaskRun:
        """Accepts a task and works on it until it is final. Raises WorkspaceError at once where a
        repository by URL cannot be reached."""
        task = self._reachable(prompt, fields)
        return self.follow(self._accept(task, {}, self._asked(files, context, on_edit)).id)

    def _reachable(self, prompt: str | TaskSpec, fields: Mapping[str, Any]) -> TaskSpec:
        task = prompt if isinstance(prompt, TaskSpec) else self.spec(prompt, **fields)
        service.check_reachable(self._engine, specification.check(task))
        return task

    def _accept(
        self, prompt: str | TaskSpec, fields: Mapping[str, Any], files: Asked | None
    ) -> TaskRun:
        task = prompt if isinstance(prompt, TaskSpec) else self.spec(prompt, **fields)
        return service.submit(self._engine, task, self._cwd, files)

    def _asked(
        self, files: Sequence[str | Path], context: str | Path, on_edit: str
    ) -> Asked | None:
        if on_edit not in tuple(OnEdit):
            raise UsageError(f"on_edit is {on_edit!r}", f"one of {', '.join(OnEdit)} is needed")
        asked = Asked(
            cwd=self._cwd,
            files=tuple(map(str, files)),
            context=str(context or ""),
            on_edit=OnEdit(on_edit),
        )
        return asked if asked.files or asked.context else None

    def retry(
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
        """Goes on with a run where it stopped, and follows it. `agent` hands it over to another
        CLI. `attempts` further ones are allowed (default: one); what else is given holds from now
        on. Raises UsageError, Conflict."""
        given = {
            "continuity": continuity,
            "model": model,
            "budget_usd": budget_usd,
            "timeout_s": timeout_s,
            "attempts": attempts,
        }
        run = self._again(ref, agent, **given)
        return run if run.state is RunState.SUCCEEDED else self.follow(run.id)

    def _again(self, ref: str, agent: str, **changes: Any) -> TaskRun:
        return service.retry(self._engine, ref, agent, service.Changes(**changes))

    def update(
        self,
        ref: str,
        prompt: str,
        *,
        files: Sequence[str | Path] = (),
        context: str | Path = "",
        on_edit: str = OnEdit.MERGE,
    ) -> TaskRun:
        """Gives a run new instructions, and files, in the same conversation, and follows it."""
        return self.follow(
            self._instruct(ref, prompt, files=files, context=context, on_edit=on_edit).id
        )

    def _instruct(
        self,
        ref: str,
        prompt: str,
        *,
        files: Sequence[str | Path] = (),
        context: str | Path = "",
        on_edit: str = OnEdit.MERGE,
    ) -> TaskRun:
        return service.update(self._engine, ref, prompt, self._asked(files, context, on_edit))

    def plan_run(self, file: str | Path, jobs: int = 0) -> PlanRun:
        """Begins the plan in a file, or goes on with it, until it is done or nothing can go on.
        `jobs`: how many tasks at once (0: as many as the plan says). Needs the extra `plans`.
        Raises PlanError with all that is wrong, Conflict while another process runs it."""
        return self._plan_run(self._engine, file, jobs)

    def _plan_run(self, engine: Engine, file: str | Path, jobs: int) -> PlanRun:
        path = (self._cwd / file).absolute()
        return plans.run(
            engine, read_plan(path, self._settings), seed_of(self._settings, self._cwd), path, jobs
        )

    def plan_retry(self, name: str, task: str = "", jobs: int = 0) -> PlanRun:
        """Goes on with what failed in a plan, or with one task of it. Raises NotFound, Conflict."""
        return self._plan_retry(self._engine, name, task, jobs)

    def _plan_retry(self, engine: Engine, name: str, task: str, jobs: int) -> PlanRun:
        return plans.retry(engine, name, task, jobs)

    def plan_report(self, name: str) -> dict[str, Any]:
        """The object that `perdure plan show NAME --json` prints. Raises NotFound."""
        plan = self._engine.store.plan(name)
        return plans.report_of(self._engine.store, plan, service.probe_of(self._engine))

    def stop(self, ref: str) -> TaskRun:
        """Stops a run; `retry` goes on later."""
        return service.stop(self._engine, ref)

    def get(self, ref: str) -> TaskRun:
        """The run as it is now. Raises NotFound."""
        return self._engine.store.get(ref)

    def runs(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        """Newest first."""
        return self._engine.store.find(states, limit)

    def attempts(self, ref: str) -> Sequence[Attempt]:
        """The run's attempts, with outcomes and receipts."""
        return self._engine.store.attempts(self.get(ref).id)

    def checkpoints(self, ref: str) -> Sequence[Checkpoint]:
        """What was saved of the run, workdir and conversation together, oldest first."""
        return self._engine.store.checkpoints(self.get(ref).id)

    def restore(self, ref: str, number: int = 0, *, files_only: bool = False) -> Restored:
        """Takes the run back to a checkpoint (0: the newest). What is there is saved first. Raises
        NotFound, Conflict, WorkspaceError."""
        return restore(self._engine, ref, number, files_only=files_only)

    def report(self, ref: str) -> dict[str, Any]:
        """The object that `perdure show NAME --json` prints."""
        return service.describe(self._engine, ref)

    def liveness(self, ref: str) -> Liveness | None:
        """Return what lives of a run that is stored as running: `attended`, `unattended` (its agent
        works on without a supervisor) or `interrupted` (nothing lives: `retry` goes on). None for a
        run in any other state."""
        return service.liveness_of(self._engine, self.get(ref))

    @property
    def sessions(self) -> Sessions:
        """The session service: create, get, update, count, extend, close, statistics, rebuild."""
        engine = self._engine
        return Sessions(
            store=engine.store,
            driver=engine.driver,
            home=lambda driver: driver.home(engine.environ),
            copies=engine.copies,
            lifetime_s=engine.session_lifetime_s,
        )

    def history(self, ref: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Records of the run with `seq` greater than `after`, oldest first."""
        return self._engine.store.history(self.get(ref).id, after, limit)


def open(
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    observers: Sequence[Observer] = (),
) -> Runner:
    """The door for ordinary programs, with the settings that the command would have here. Raises
    ConfigError, StoreError."""
    own, here = os.environ if environ is None else environ, cwd or Path.cwd()
    return Runner(load(own, here), here, own, observers)


def connect(
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
    observers: Sequence[Observer] = (),
) -> AsyncRunner:
    """The door for programs on an event loop."""
    from perdure.library.awaited import AsyncRunner

    return AsyncRunner(open(cwd, environ, observers))
