"""`Runner`: every command of perdure as a method, for ordinary programs.

`awaited` derives the same methods for asyncio programs. This module only converts arguments; the
input is validated by the modules that do the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from msgspec.structs import asdict, replace

from perdure.config import Settings
from perdure.config.tasks import task_defaults
from perdure.engine import plans, service
from perdure.engine.attempt import Engine
from perdure.engine.checkpoints import RestoredRun, restore
from perdure.engine.plan_file import read_plan, seed_of
from perdure.engine.report import why_of
from perdure.engine.sessions.service import Sessions
from perdure.engine.worker import drive
from perdure.engine.worker import follow as watch
from perdure.errors import Conflict, NotFound, PerdureError, UsageError
from perdure.host.actors import local_person
from perdure.host.wakeup import ring
from perdure.library.options import (
    AnswerText,
    OnEditText,
    PathText,
    PolicyOptions,
    RetryOptions,
    TaskOptions,
    check_names,
    fields_of,
    with_seconds,
)
from perdure.library.results import RunResult, result_of_run
from perdure.model import (
    Attempt,
    Checkpoint,
    ContinuityPolicy,
    Liveness,
    OnEdit,
    RunState,
    SessionKey,
    TaskRun,
    TaskSpec,
)
from perdure.model.codec import plain
from perdure.model.events import Record
from perdure.model.requests import AgentRequest, AnswerKind
from perdure.model.work import WorkReport
from perdure.protocols import Observer, RunRow
from perdure.rules import specification
from perdure.rules.lifecycle import FINAL
from perdure.rules.log_line import line_of
from perdure.rules.plan import Plan, PlanRun
from perdure.wiring import open_engine
from perdure.workspace import Applied
from perdure.workspace.task_files import FileRequest

if TYPE_CHECKING:
    from perdure.agents.prove import ProveResult
    from perdure.capsule.export import Exported
    from perdure.capsule.imports import ImportRequest, ImportResult
    from perdure.capsule.manifest import Manifest
    from perdure.engine.conversations import (
        ConversationEntry,
        ConversationIndex,
        InteractiveCommand,
        TakeBackResult,
    )
    from perdure.engine.sweeper import DiskUsage, ResetOutcome, Sweep

POLL_S = 0.1
"""Poll interval for the journal of a followed run, in seconds."""


class Runner:
    """Runs tasks and manages runs for ordinary programs. Close it, or use it in a `with` statement;
    closing stops running attempts gracefully."""

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
        self._working: set[int] = set()
        """Ids of the threads that perform attempts."""
        self._idle = threading.Condition()
        self._engine = replace(
            open_engine(settings, environ, observers, actor=local_person()),
            stopping=self._stop.is_set,
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
        """Stop running attempts gracefully, wait until they have ended, and close the store."""
        self._stop.set()
        here = {threading.get_ident()}
        with self._idle:
            # An observer or a signal handler may close the runner in the thread that performs the
            # attempt. That thread cannot wait for itself.
            self._idle.wait_for(lambda: self._working <= here)
        if self._engine.warm is not None:
            self._engine.warm.close()
        self._engine.store.close()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Keep the current thread in `_working` while the `with` block runs. `close` in another
        thread waits until the block has ended."""
        thread = threading.get_ident()
        if thread in self._working:
            yield
            return
        with self._idle:
            self._working.add(thread)
        try:
            yield
        finally:
            with self._idle:
                self._working.discard(thread)
                self._idle.notify_all()

    @property
    def settings(self) -> Settings:
        """The settings in force, as `perdure config show` prints them."""
        return self._settings

    # --- run tasks

    def spec(self, prompt: str, **options: Unpack[TaskOptions]) -> TaskSpec:
        """Return a validated TaskSpec from the prompt, the settings of this machine and the given
        fields. Raises TypeError for an unknown field, UsageError for an invalid value."""
        return self._task(prompt, options, "spec")

    def _task(self, prompt: str | TaskSpec, options: Mapping[str, Any], caller: str) -> TaskSpec:
        given = fields_of(options, caller)
        if isinstance(prompt, TaskSpec):
            return specification.check(replace(prompt, **given))
        if not given.keys() & {"repo", "here", "service"}:
            given["repo"] = str(self._cwd)
        usual = task_defaults(self._settings)
        return specification.check(specification.with_defaults(usual, {"prompt": prompt, **given}))

    def submit(
        self,
        prompt: str | TaskSpec,
        *,
        files: Sequence[PathText] = (),
        context: PathText = "",
        on_edit: OnEditText = OnEdit.MERGE,
        include_changes: bool = False,
        **options: Unpack[TaskOptions],
    ) -> RunResult:
        """Accept a task and return at once; a pool (`perdure work`) or `follow` runs it.

        `files` (`PATH` or `PATH=DEST`) and all files below `context` are copied into the workdir.
        `on_edit` says what happens to a file that the agent has edited: `keep`, `replace` or
        `merge`. `include_changes`: start a new workdir with the uncommitted changes of the
        checkout. Raises TypeError, UsageError, NotFound, Conflict, AgentMissing, DiskFull.
        """
        task = self._task(prompt, options, "submit")
        run = self._accept(task, self._asked(files, context, on_edit), include_changes)
        ring(self._engine.state)
        return self._seen(run)

    def follow(self, ref: str) -> RunResult:
        """Run the attempts of a run until it is final, and return it. If a pool already performs
        the run, only wait until the run is final. Raises Conflict if another run uses its workdir
        or conversation."""
        with self._at_work():
            run_id = self._engine.store.get(ref).id
            try:
                return self._seen(drive(self._engine, run_id))
            except Conflict:
                if self._engine.store.get(run_id).state is not RunState.RUNNING:
                    raise
                return self._seen(watch(self._engine, run_id, lambda record: None))

    def run(
        self,
        prompt: str | TaskSpec,
        *,
        files: Sequence[PathText] = (),
        context: PathText = "",
        on_edit: OnEditText = OnEdit.MERGE,
        include_changes: bool = False,
        **options: Unpack[TaskOptions],
    ) -> RunResult:
        """Accept a task, run it until it is final, and return the result. The arguments are those
        of `submit`. Raises the same errors, and WorkspaceError if a repository given by URL cannot
        be reached."""
        task = self._task(prompt, options, "run")
        asked = self._asked(files, context, on_edit)
        return self.follow(self._begin(task, asked, include_changes).id)

    def _begin(self, task: TaskSpec, asked: FileRequest | None, include_changes: bool) -> TaskRun:
        service.check_reachable(self._engine.workspaces, task)
        return self._accept(task, asked, include_changes)

    def _accept(self, task: TaskSpec, asked: FileRequest | None, include_changes: bool) -> TaskRun:
        return service.submit(self._engine, task, self._cwd, asked, include_changes=include_changes)

    def _seen(self, run: TaskRun) -> RunResult:
        return result_of_run(self._engine.store, run)

    def _asked(
        self, files: Sequence[PathText], context: PathText, on_edit: OnEditText
    ) -> FileRequest | None:
        if on_edit not in tuple(OnEdit):
            raise UsageError(f"on_edit cannot be {on_edit!r}", f"expected one of {_words(OnEdit)}")
        asked = FileRequest(
            cwd=self._cwd,
            files=tuple(map(str, files)),
            context=str(context or ""),
            on_edit=OnEdit(on_edit),
        )
        if asked.files or asked.context:
            return asked
        return None

    def retry(
        self,
        ref: str,
        agent: str = "",
        **changes: Unpack[RetryOptions],
    ) -> RunResult:
        """Continue a run where it stopped, follow it, and return it.

        `agent`: hand the run over to another agent. `attempts`: number of further attempts
        (default: one). The other options permanently replace those of the task. Raises UsageError,
        Conflict.
        """
        run = self._again(ref, agent, changes_of(changes, "retry"))
        if run.state is RunState.SUCCEEDED:
            return self._seen(run)
        return self.follow(run.id)

    def _again(self, ref: str, agent: str, changes: service.Changes) -> TaskRun:
        return service.retry(self._engine, ref, agent, changes)

    def update(
        self,
        ref: str,
        prompt: str,
        *,
        files: Sequence[PathText] = (),
        context: PathText = "",
        on_edit: OnEditText = OnEdit.MERGE,
        **policies: Unpack[PolicyOptions],
    ) -> RunResult:
        """Give a run new instructions and files in the same conversation, follow it, and return it.
        The fields in `policies` permanently replace those of the task. Raises UsageError, Conflict.
        """
        asked = self._asked(files, context, on_edit)
        return self.follow(self._instruct(ref, prompt, asked, changes_of(policies, "update")).id)

    def tell(self, ref: str, message: str, *, key: str = "") -> RunResult:
        """Send a message to the running agent without ending its turn, and return the run. A
        message with the same key and text is sent only once. Raises UsageError, NotFound, and
        Conflict for a run that is not running."""
        from perdure.engine.steering import tell

        return self._seen(tell(self._engine.store, self._engine.state, ref, message, key).run)

    def _instruct(
        self, ref: str, prompt: str, asked: FileRequest | None, changes: service.Changes
    ) -> TaskRun:
        return service.update(self._engine, ref, prompt, asked, changes)

    def resume(self, which: str, prompt: str = "", **options: Unpack[TaskOptions]) -> RunResult:
        """Continue a chosen conversation, even one that was started without perdure. Follow its
        run, and return it.

        `which`: a run, the id of a conversation, or a unique prefix of that id. The options apply
        only to a conversation that has no run yet. Raises NotFound, UsageError, Conflict.
        """
        return self.follow(self._resumed(which, prompt, options).id)

    def _resumed(self, which: str, prompt: str, options: Mapping[str, Any]) -> TaskRun:
        from perdure.engine.conversations import ResumeRequest, resume

        given = fields_of(options, "resume")
        repo, branch = str(given.pop("repo", "")), str(given.pop("branch", ""))
        # The empty model replaces the default from the settings. The conversation then continues
        # with the model that it already has.
        task = self._task(prompt, {"model": "", **given}, "resume")
        wanted = ResumeRequest(spec=replace(task, repo=""), repo=repo, branch=branch)
        return resume(self._engine, self._entry(which), wanted)

    def _entry(self, which: str) -> ConversationEntry:
        from perdure.engine.conversations import ConversationEntry

        store = self._engine.store
        try:
            run = store.get(which)
        except NotFound:
            return self._conversations(()).find(which)
        session = store.session(SessionKey(run.spec.agent, run.scope))
        return ConversationEntry(
            agent=run.spec.agent,
            id=session.id if session else "",
            updated=run.updated,
            session=session,
            run=run,
        )

    def _conversations(self, agents: Sequence[str]) -> ConversationIndex:
        from perdure.agents import registry
        from perdure.engine.conversations import ConversationIndex

        found = {}
        for name in agents or registry.names():
            try:
                found[name] = registry.load(name)
            except PerdureError:
                if agents:
                    raise
        return ConversationIndex(self._engine.store, found, self._engine.environ, frozenset(agents))

    def fork(
        self,
        ref: str,
        prompt: str = "",
        *,
        turn: int = 0,
        checkpoint: int = 0,
        name: str = "",
        branch: str = "",
    ) -> RunResult:
        """Start a run from the present conversation and files of another run. Follow the new run,
        and return it.

        `turn`: omit everything after this turn of the conversation. `checkpoint`: start from this
        checkpoint instead. The parent run is only read. Raises UsageError, NotFound, Conflict,
        WorkspaceError.
        """
        return self.follow(self._forked(ref, prompt, turn, checkpoint, name, branch).id)

    def _forked(
        self, ref: str, prompt: str, turn: int, checkpoint: int, name: str, branch: str
    ) -> TaskRun:
        from perdure.engine.conversations import ForkRequest, fork

        if turn and checkpoint:
            raise UsageError(
                "turn and checkpoint exclude each other: a fork begins at one of them",
                "leave one of them out",
            )
        wanted = ForkRequest(
            prompt=prompt, at=turn, checkpoint=checkpoint, name=name, branch=branch
        )
        return fork(self._engine, ref, wanted)

    def stop(self, ref: str) -> RunResult:
        """Stop a run, and return it; `retry` continues it later. Raises Conflict for a finished
        run."""
        return self._seen(service.stop(self._engine, ref))

    def requests(self, ref: str = "") -> Sequence[AgentRequest]:
        """Return the open requests of all runs or, with `ref`, all requests of one run. Raises
        NotFound."""
        return service.requests(self._engine.store, ref)

    def answer(
        self, ref: str, answer: AnswerText, words: str = "", *, request: int = 0
    ) -> RunResult:
        """Answer a request of the run's agent, and return the run. `answer`: `allow` or `deny` for
        a call, `text` for a question, with the answer in `words`. `request`: its number; 0 means
        the only open request. The run continues when `follow` or a pool performs it. Raises
        UsageError, Conflict."""
        try:
            kind = AnswerKind(answer)
        except ValueError:
            raise UsageError(
                f"expected allow, deny or text as the answer, got {answer!r}"
            ) from None
        return self._seen(service.answer(self._engine, ref, request, kind, words)[0])

    # --- inspect

    def get(self, ref: str) -> RunResult:
        """Return the run with its newest result and receipt. Raises NotFound."""
        return self._seen(self._engine.store.get(ref))

    def runs(self, states: Sequence[RunState] = (), limit: int = 50) -> Sequence[RunRow]:
        """Return runs, newest first, as `perdure ls` lists them."""
        return self._engine.store.find(states, limit)

    def attempts(self, ref: str) -> Sequence[Attempt]:
        """Return the run's attempts, with outcomes and receipts."""
        return self._engine.store.attempts(self.get(ref).id)

    def report(self, ref: str) -> dict[str, Any]:
        """Return the object that `perdure show NAME --json` prints."""
        return _json(
            service.describe(self._engine.store, self._engine.state, self._engine.host, ref)
        )

    def work(self, ref: str, attempt: int = 0) -> WorkReport:
        """Return the work report of an attempt (0: the newest), with its verdict. Raises
        NotFound."""
        return service.work(self._engine.store, ref, attempt)

    def why(self, ref: str) -> dict[str, Any]:
        """Return the object that `perdure why NAME --json` prints: how each attempt started and
        why, and the verdict of its receipt."""
        return _json(
            why_of(service.describe(self._engine.store, self._engine.state, self._engine.host, ref))
        )

    def liveness(self, ref: str) -> Liveness | None:
        """Return which processes of a running run are alive: `attended` (its supervisor),
        `unattended` (only its agent) or `interrupted` (neither; `retry` continues the run). Return
        None for a run that is not running."""
        return service.liveness_of(
            self._engine.store, self._engine.state, self._engine.host, self._engine.store.get(ref)
        )

    def history(self, ref: str, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Return the run's records with `seq` greater than `after`, oldest first."""
        return self._engine.store.history(self._engine.store.get(ref).id, after, limit)

    def events(self, ref: str, after: int = 0) -> Iterator[Record]:
        """Yield the run's records with `seq` greater than `after`, as soon as they are stored. End
        when the run is final and all records were yielded. Another thread, a pool or a `perdure`
        process must perform the run meanwhile."""
        run_id = self._engine.store.get(ref).id
        while True:
            final = self._engine.store.get(run_id).state in FINAL
            records = self._engine.store.history(run_id, after)
            for record in records:
                after = record.seq
                yield record
            if final and not records:
                return
            if not records:
                time.sleep(POLL_S)

    def logs(self, ref: str, attempt: int = 0) -> Sequence[str]:
        """Return the agent's messages and actions, as the lines that `perdure logs` prints.
        `attempt`: number of the attempt (0: all attempts)."""
        lines: list[str] = []
        seen = 0
        while records := self.history(ref, seen):
            for record in records:
                seen = record.seq
                line = line_of(record)
                if line and attempt in (0, record.attempt):
                    lines.append(line)
        return lines

    def diff(self, ref: str, *, stat: int = 0, binary: bool = False) -> bytes:
        """Return the run's changes, committed or not, as a git patch. The bytes come from the
        agent, so clean them before display. `stat`: return a summary with this many columns
        instead. `binary`: include binary files, so that `git apply` accepts the patch."""
        return service.diff(
            self._engine.store,
            self._engine.workspaces,
            self._engine.host,
            ref,
            stat=stat,
            binary=binary,
        )

    @property
    def sessions(self) -> Sessions:
        """The session service, which creates, reads, changes and rebuilds session records."""
        engine = self._engine
        return Sessions(
            store=engine.store,
            driver=engine.driver,
            home=lambda driver: driver.home(engine.environ),
            copies=engine.copies,
            lifetime_s=engine.session_lifetime_s,
        )

    def conversations(
        self, limit: int = 50, *, agents: Sequence[str] = ()
    ) -> Sequence[ConversationEntry]:
        """Return the conversations on this machine, newest first, including those that were started
        without perdure. `agents`: only the conversations of these agents. The id of a conversation
        can be passed to `resume`."""
        return self._conversations(agents).entries(limit)

    def agents(self) -> Sequence[dict[str, Any]]:
        """Return the agents as `perdure agents --json` lists them: version, program, home,
        abilities, number of running runs."""
        from perdure.agents.installed import installed

        rows = self._engine.store.find([RunState.RUNNING], limit=100_000)
        running = [row.agent for row in rows]
        return installed(running, self._engine.environ, self._engine.environ)

    def prove(
        self, *agents: str, quick: bool = False, only: Sequence[str] = (), jobs: int = 0
    ) -> Sequence[ProveResult]:
        """Test the installed agents against perdure's own model server on this machine, without an
        API key, and return the results. Raises AgentMissing, UsageError."""
        from perdure.agents.prove import candidates, prove

        environ = self._engine.environ
        wanted, _ = candidates(agents, (), environ)
        found = prove(
            wanted, quick=quick, only=only, jobs=jobs, environ=environ, stopping=self._stop.is_set
        )
        return tuple(found)

    # --- use the results

    def apply(self, ref: str, to: PathText = "", *, commit: bool = False) -> Applied:
        """Apply a run's changes to the checkout at `to` (default: the runner's directory), and
        return the result. If they cannot all be applied, nothing changes, and the result's
        `refused` has the reasons. `commit`: commit the changes. Raises Conflict, UsageError,
        NotFound."""
        return service.apply(
            self._engine.store,
            self._engine.workspaces,
            self._engine.host,
            ref,
            self._cwd / to,
            commit=commit,
        )

    def open(self, ref: str) -> InteractiveCommand:
        """Open the run for a person: return the command, directory and environment variables with
        which the agent's own program continues it. No attempt starts until `take_back`."""
        from perdure.engine.conversations import open_for_person

        return open_for_person(self._engine, ref)

    def take_back(self, ref: str, adopt: str = "") -> TakeBackResult:
        """Take back a run that a person has opened, and return how its conversation changed.
        `adopt`: id of a conversation, started while the run was open, with which the run continues.
        """
        from perdure.engine.conversations import take_back

        return take_back(self._engine, ref, adopt)

    # --- checkpoints and moves

    def checkpoints(self, ref: str) -> Sequence[Checkpoint]:
        """Return the checkpoints of the run (workdir and conversation together), oldest first."""
        return self._engine.store.checkpoints(self._engine.store.get(ref).id)

    def restore(self, ref: str, number: int = 0, *, files_only: bool = False) -> RestoredRun:
        """Restore the run to a checkpoint, and return the result. `number`: 0 means the newest
        checkpoint. The present state is saved first. Raises NotFound, Conflict, WorkspaceError."""
        return restore(self._engine, ref, number, files_only=files_only)

    def export(
        self,
        ref: str,
        file: PathText,
        *,
        at: int = 0,
        redact: bool = False,
        leave_out: bool = False,
        allow_secrets: bool = False,
    ) -> Exported:
        """Write a checkpoint of a run into one file, a capsule. Return a description of it.

        `at`: number of the checkpoint (0: the newest). `redact`: replace secrets in the
        conversation and the records. `leave_out`: omit files that contain a secret.
        `allow_secrets`: write everything unchanged. Needs the extra `capsule`. Raises Conflict if
        the file exists, and SecretsFound if the checkpoint contains a secret that none of these
        arguments covers."""
        from perdure.capsule.export import ExportRequest, export

        wanted = ExportRequest(
            target=self._cwd / file,
            at=at,
            redact=redact,
            leave_out=leave_out,
            allow=allow_secrets,
        )
        return export(self._engine, ref, wanted)

    def import_(
        self,
        file: PathText,
        *,
        into: PathText = "",
        repo: PathText = "",
        name: str = "",
        trust: bool = False,
        verify: str | None = None,
    ) -> ImportResult:
        """Import a run from a capsule without starting it. `into`: directory to create as its
        workdir. `repo`: create a worktree of this repository instead. `trust`: keep the run's
        permissions, arguments, variables and check command. `verify`: check command that replaces
        the run's. Needs the extra `capsule`. Raises CapsuleError, Conflict."""
        from perdure.capsule.container import open_capsule
        from perdure.capsule.imports import import_run

        wish = replace(self._wish(str(file), into, repo, name, trust), verify=verify)
        path = self._cwd / file
        if not path.is_file():
            raise NotFound(f"there is no file {str(file)!r}", "perdure export NAME -o FILE")
        with path.open("rb") as stream, open_capsule(str(file), stream) as capsule:
            return import_run(self._engine, capsule.manifest, capsule, wish)

    def _wish(
        self, source: str, into: PathText, repo: PathText, name: str, trust: bool
    ) -> ImportRequest:
        from perdure.capsule.imports import ImportRequest
        from perdure.workspace.identity import local_path

        if into and repo:
            raise UsageError(
                "into and repo exclude each other: a run has one workdir",
                "leave one of them out",
            )
        return ImportRequest(
            source=source,
            into=self._cwd / into if into else None,
            repo=(self._cwd / local_path(str(repo))).resolve() if repo else None,
            name=name,
            trusted=trust,
            permissions=self._settings.permissions,
        )

    def move_to(
        self,
        ref: str,
        url: str,
        *,
        redact: bool = False,
        leave_out: bool = False,
        allow_secrets: bool = False,
    ) -> Manifest:
        """Publish the run's newest checkpoint to a checkpoint store and release the run, so that no
        further attempt starts here. Needs the extra `capsule`. Raises Conflict for a running run.
        """
        from perdure.capsule import move

        ways = move.SecretOptions(redact=redact, leave_out=leave_out, allow=allow_secrets)
        return move.move_to(self._engine, ref, url, ways)

    def move_from(
        self,
        ref: str,
        url: str,
        *,
        into: PathText = "",
        repo: PathText = "",
        name: str = "",
        trust: bool = False,
        take_over: bool = False,
        verify: str | None = None,
    ) -> ImportResult:
        """Fetch a run from a checkpoint store without starting it. `take_over`: take it even if
        another machine seems to be running it; that machine then stops. The other keyword
        arguments are those of `import_`. Needs the extra `capsule`. Raises Conflict."""
        from perdure.capsule import move

        wish = replace(self._wish(url, into, repo, name, trust), verify=verify)
        return move.move_from(self._engine, ref, url, wish, over=take_over)

    # --- clean up

    def remove(self, ref: str, *, force: bool = False) -> service.RemovedRuns:
        """Remove a finished run from the list, move its workdir to the trash, and return the
        result. Without `force`, raises WorkspaceError if the workdir has changes that are not saved
        elsewhere; the message lists them."""
        return service.remove(
            self._engine.store, self._engine.workspaces, self._engine.host, ref, force=force
        )

    def reset(self, ref: str, *, dry_run: bool = False) -> ResetOutcome:
        """Save and then clear a run's workdir and conversation, so that it starts over. Return the
        result; `trash_restore` undoes it. `dry_run`: only report what would be cleared."""
        from perdure.engine.sweeper import Target, reset

        return reset(
            self._engine.store,
            self._engine.workspaces,
            self._engine.host,
            Target(run=ref),
            self._cwd,
            dry=dry_run,
        )

    def gc(self, *, dry_run: bool = False, many: bool = False, accept: bool = False) -> Sweep:
        """Move everything that is unused and saved elsewhere to the trash, and return the result.
        `many`: allow the removal of many items of a class at once. `accept`: confirm that the clock
        and the root's volume are correct. `dry_run`: remove nothing."""
        from perdure.engine.sweeper import rules_of, sweep

        rules = rules_of(self._settings, many=many)
        return sweep(
            self._engine.store,
            self._engine.workspaces,
            self._engine.state,
            rules,
            dry=dry_run,
            accept=accept,
        )

    def trash(self) -> Sequence[dict[str, Any]]:
        """Return the entries of the trash as `perdure trash --json` lists them."""
        from perdure.engine.sweeper import listed

        found = listed(self._engine.workspaces, self._engine.state)
        return [asdict(entry.report()) for entry in found]

    def trash_restore(self, entry: str) -> Sequence[Path]:
        """Restore an entry of the trash, and return the restored paths. Raises NotFound,
        Conflict."""
        from perdure.engine.sweeper import restore

        return tuple(
            restore(self._engine.store, self._engine.workspaces, self._engine.state, entry).places
        )

    def trash_purge(self, entry: str) -> None:
        """Permanently delete an entry of the trash. Raises NotFound."""
        from perdure.engine.sweeper import purge

        purge(self._engine.workspaces, self._engine.state, entry)

    def du(self) -> DiskUsage:
        """Return the disk usage of perdure, by class, agent and repository."""
        from perdure.engine.sweeper import usage

        return usage(self._engine.store, self._engine.workspaces, self._engine.state)

    # --- plans

    def plan_check(self, file: PathText) -> Plan:
        """Read a plan file and return the plan. Needs the extra `plans`. Raises PlanError listing
        all problems."""
        return read_plan((self._cwd / file).absolute(), self._settings)

    def plan_run(self, file: PathText, jobs: int = 0) -> PlanRun:
        """Start or continue the plan in a file, run it until it is done or cannot continue, and
        return it. `jobs`: maximum number of concurrent tasks (0: as the plan says). Needs the extra
        `plans`. Raises PlanError with all problems of the file, Conflict while another process runs
        the plan."""
        return self._plan_run(self._engine, file, jobs)

    def _plan_run(self, engine: Engine, file: PathText, jobs: int) -> PlanRun:
        path = (self._cwd / file).absolute()
        plan, seed = read_plan(path, self._settings), seed_of(self._settings, self._cwd)
        with self._at_work():
            return plans.run(engine, plan, seed, path, jobs)

    def plan_retry(self, name: str, task: str = "", jobs: int = 0) -> PlanRun:
        """Retry the failed tasks of a plan, or only `task`, and return the plan. Raises NotFound,
        Conflict."""
        return self._plan_retry(self._engine, name, task, jobs)

    def _plan_retry(self, engine: Engine, name: str, task: str, jobs: int) -> PlanRun:
        with self._at_work():
            return plans.retry(engine, name, task, jobs)

    def plan_report(self, name: str) -> dict[str, Any]:
        """Return the object that `perdure plan show NAME --json` prints. Raises NotFound."""
        plan = self._engine.store.plan(name)
        return _json(
            plans.report_of(
                self._engine.store, plan, service.probe_of(self._engine.state, self._engine.host)
            )
        )


def changes_of(options: Mapping[str, Any], caller: str) -> service.Changes:
    """Convert the options of a retry or an update to `Changes`. Raises TypeError for an unknown
    name, UsageError for an invalid value."""
    known = (PolicyOptions if caller == "update" else RetryOptions).__annotations__
    check_names(options, known, caller)
    fields = with_seconds(options)
    continuity = fields.get("continuity")
    if continuity is not None and continuity not in tuple(ContinuityPolicy):
        raise UsageError(
            f"continuity cannot be {continuity!r}", f"expected one of {_words(ContinuityPolicy)}"
        )
    if continuity is not None:
        fields["continuity"] = ContinuityPolicy(continuity)
    return service.Changes(**fields)


def _words(choices: type[StrEnum]) -> str:
    return ", ".join(choices)


def _json(report: object) -> dict[str, Any]:
    """Return a report as a dictionary, with the fields that `--json` prints."""
    shown: dict[str, Any] = plain(report)
    return shown
