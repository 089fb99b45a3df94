"""The operations on runs that every interface calls: submit, retry, update, stop, describe and
others.

Input is checked here before anything is stored or made, so a refused request leaves nothing behind.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct
from msgspec.structs import replace

from perdure.engine.attempt import Engine, what_may_be_parked
from perdure.engine.attempt.engine import (
    EngineStore,
    moved_to,
    require_here,
    unavailable_reason,
    work_records,
)
from perdure.engine.attempt.opening_steps import check_home, check_temporary
from perdure.engine.attempt.workdir import cleaned_up, is_result_undone
from perdure.engine.worker import rescue
from perdure.errors import Conflict, NotFound, UsageError, WorkspaceError
from perdure.host import process
from perdure.host.homes.linked_homes import LinkedHomes
from perdure.host.volumes import Volumes
from perdure.model import (
    NOTHING_GIVEN,
    Backend,
    Continuation,
    ContinuityPolicy,
    Given,
    Host,
    Launch,
    Liveness,
    OutcomeKind,
    RunState,
    Start,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.model.requests import AnswerKind, RequestKind, RequestState
from perdure.model.work import WorkReport
from perdure.patterns import late_pattern
from perdure.protocols import AgentDriver, RequestStore, RunStore
from perdure.rules import specification
from perdure.rules.approvals import why_not_allowed
from perdure.rules.lifecycle import FINAL, is_about_budget
from perdure.rules.requests import WAITING, WORDS, late, questions
from perdure.rules.run_names import suggest
from perdure.rules.run_titles import title_of_run
from perdure.workspace import Workspaces
from perdure.workspace.identity import is_remote, local_path

if TYPE_CHECKING:
    from perdure.engine.report import ReportStore
    from perdure.host.process.probe import Running
    from perdure.model.reports import RunReport
    from perdure.model.requests import AgentRequest
    from perdure.workspace import Applied
    from perdure.workspace.task_files import FileRequest

NAME = late_pattern(r"[a-z0-9][a-z0-9-]{0,62}")
POLICIES = ("on_denied", "on_leftover", "last_word")
_CHANGEABLE = ("continuity", "model", "budget_usd", "timeout_s", *POLICIES)
SCOPE = late_pattern(r"[^\x00-\x1f\x7f]{1,200}")


def submit(
    engine: Engine,
    spec: TaskSpec,
    cwd: Path,
    files: FileRequest | None = None,
    deliveries: Sequence[int] = (),
    *,
    include_changes: bool = False,
    run_id: str = "",
) -> TaskRun:
    """Accept a task, with its files, and return its run. If a run with the same key, spec and files
    exists, return it.

    `deliveries`: numbers of the webhook deliveries that asked for the task. `include_changes`: fill
    the new workdir with the uncommitted changes of the checkout at `spec.repo`. `run_id`: the id
    that the run gets if it is new. If the returned run has another id, it existed before.

    Raises UsageError, NotFound, Conflict, AgentMissing, DiskFull.
    """
    spec = specification.check(spec)
    spec = replace(spec, repo=local_path(spec.repo))
    check_task(engine.driver, engine.environ, engine.homes, engine.volumes, spec, cwd)
    if include_changes:
        _check_includable(spec)
    if spec.name and not NAME.fullmatch(spec.name):
        raise UsageError(
            f"{spec.name!r} is not a valid name of a run",
            "use up to 63 lower-case letters, digits and hyphens",
        )
    for flag, value in (("--scope", spec.scope), ("--key", spec.key)):
        if value and not SCOPE.fullmatch(value):
            raise UsageError(f"{flag}: expected one line of at most 200 characters")
    given = take_files(engine.state, files)
    tries = 0
    while True:
        name = spec.name or suggest(tries)
        workspace = engine.workspaces.plan(spec, name, cwd)
        try:
            with (
                _with_changes(engine.store, engine.workspaces, spec, name, workspace)
                if include_changes
                else nullcontext()
            ):
                new = run_id or uuid.uuid4().hex
                return engine.store.add(spec, new, name, workspace, given, deliveries)
        except Conflict as conflict:
            # If a suggested name happens to be taken, another one is tried. Every other conflict is
            # raised.
            tries += 1
            if spec.name or tries > 20 or not _is_taken(engine.store, name):
                raise conflict


def _check_includable(spec: TaskSpec) -> None:
    """Raise UsageError if the task names no local checkout from which changes can be copied."""
    if spec.here or spec.service or not spec.repo or is_remote(spec.repo):
        raise UsageError(
            "--include-changes needs a checkout on this machine",
            "it excludes --here, --service and --repo URL",
        )
    if spec.base:
        raise UsageError(
            "--include-changes starts from the checkout's HEAD",
            "leave --base (or the setting base) out",
        )


@contextmanager
def _with_changes(
    store: RunStore, workspaces: Workspaces, spec: TaskSpec, name: str, workspace: Workspace
) -> Iterator[None]:
    """Fill the new workdir with the uncommitted changes, then run the `with` block, which stores
    the run. The workdir must be complete before the run is stored, because any pool may claim a
    stored run. If the block fails, the workdir is moved into the trash.

    If a run with the same key exists, only the block is run. Raises WorkspaceError, and Conflict if
    the workdir exists.
    """
    if spec.key and _is_known(store, spec.key):
        yield
        return
    if os.path.lexists(workspace.path):
        raise Conflict(
            f"The branch {workspace.branch} already has a workdir",
            "choose another --branch or --name",
        )
    fd = workspaces.lock(workspace, f"perdure run {name}")
    try:
        workspaces.prepare(workspace, spec.agent)
        try:
            source = workspaces.plan_here(Path(spec.repo))
            workspaces.checkpoints.copy_state(source, workspace, ignored="none")
            yield
        except BaseException:
            workspaces.trash_workdir(
                workspace, {"run": name, "why": "a run that was not accepted", "unsaved": []}
            )
            raise
    finally:
        os.close(fd)


def _is_known(store: RunStore, ref: str) -> bool:
    try:
        store.get(ref)
    except NotFound:
        return False
    return True


def check_task(
    driver_of: Callable[[str], AgentDriver],
    environ: Mapping[str, str],
    homes: LinkedHomes,
    volumes: Volumes,
    spec: TaskSpec,
    cwd: Path,
) -> None:
    """Check whether an attempt of the task could start. Raises UsageError, AgentMissing or DiskFull
    if it could not."""
    spec = specification.check(spec)
    driver = driver_of(spec.agent)
    driver.locate(environ)
    check_prompt(spec.prompt, driver.abilities.max_prompt_bytes)
    homes.check(driver.name)
    own = {**environ, **spec.env}
    home = driver.home(own)
    check_home(driver, home)
    check_temporary(driver, spec.permissions, own)
    volumes.check([home])
    refusal = refused(driver_of, environ, spec, cwd)
    if refusal:
        raise UsageError(refusal)


def refused(
    driver_of: Callable[[str], AgentDriver], environ: Mapping[str, str], spec: TaskSpec, cwd: Path
) -> str:
    """Return the reason why the agent's driver refuses the task; empty if it accepts the task.
    Raises AgentMissing."""
    driver = driver_of(spec.agent)
    program = driver.locate(environ)
    home = str(driver.home({**environ, **spec.env}))
    first = Continuation(
        kind=Start.FRESH, session_id=str(uuid.uuid4()) if driver.abilities.choose_id else ""
    )
    return driver.refuse(
        Launch(
            spec=spec,
            continuation=first,
            prompt=spec.prompt,
            cwd=str(cwd),
            home=home,
            program=program,
        )
    )


def check_reachable(workspaces: Workspaces, spec: TaskSpec) -> None:
    """Check that a repository given by URL can be fetched. Raises WorkspaceError or NotFound if it
    cannot.

    Meant for callers that wait for the run. A run that nobody waits for is retried until the server
    can be reached again.
    """
    repo = local_path(spec.repo)
    if repo and is_remote(repo):
        workspaces.reach(repo)


def check_prompt(text: str, limit: int) -> None:
    """Raise UsageError for a prompt that is empty, not valid text, or longer than `limit` bytes (0:
    no limit)."""
    if not text.strip():
        raise UsageError(
            "the prompt is empty",
            "give it as an argument, with --prompt-file, or on standard input",
        )
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(
            "the prompt is not valid Unicode text", "check that it is a UTF-8 file"
        ) from None
    if "\x00" in text:
        raise UsageError(
            "the prompt contains a NUL character, which no agent accepts",
            "check that it is a text file",
        )
    if limit and size > limit:
        raise UsageError(
            f"the prompt has {size:,} bytes; this agent accepts at most {limit:,}",
            "put the long part into a file",
        )


def _is_taken(store: RunStore, name: str) -> bool:
    return any(row.name == name for row in store.find(limit=100_000))


class Changes(Struct, frozen=True, kw_only=True):
    """Settings of a run that a retry or an update changes. None leaves a setting as it is. Except
    for `attempts`, the new value applies to all later attempts and is recorded in the journal."""

    continuity: ContinuityPolicy | None = None
    model: str | None = None
    budget_usd: float | None = None
    timeout_s: float | None = None
    on_denied: str | None = None
    on_leftover: str | None = None
    last_word: str | None = None
    attempts: int | None = None
    """Number of further attempts to allow."""


NO_CHANGES = Changes()


def retry(engine: Engine, ref: str, agent: str = "", changes: Changes = NO_CHANGES) -> TaskRun:
    """Continue a run with the same instructions, and return it. If the supervisor of a running
    attempt died, the attempt is taken over and followed to its end first. Another attempt is then
    queued, unless the run has succeeded meanwhile or has spent its budget.

    `agent`: hand the run over to this agent. The workdir is kept, and the agent starts a new
    conversation with a brief of what was done.

    Raises UsageError for invalid changes. Raises Conflict while the run's supervisor is alive, and
    for a run that has succeeded, unless a person has restored or reset it since.
    """
    run = engine.store.get(ref)
    changed_spec(run.spec, agent, changes)
    refuse_moved(engine.state, run)
    if run.state is RunState.RUNNING:
        rescued = rescue(engine, run)
        if rescued is None:
            raise Conflict(
                f"{run.name} is already running (attempt {run.attempt})",
                f"perdure logs -f {run.name}",
            )
        # The attempt that was just taken over may have spent the budget. The person did not know
        # this when requesting the retry, so no further attempt is queued unless the request sets a
        # new budget.
        if rescued.state is RunState.SUCCEEDED or (
            changes.budget_usd is None and _has_spent_its_budget(rescued)
        ):
            return rescued
        run = rescued
    refuse_open(engine.store, run)
    if why := unavailable_reason(engine.host, engine.publisher, run):
        raise Conflict(
            f"{run.name} cannot continue here: {why}",
            f"perdure retry {run.name}, on {run.host_name}",
        )
    taken_back = run.state is RunState.SUCCEEDED and is_result_undone(engine.store, run)
    if run.state is RunState.SUCCEEDED and not taken_back:
        raise Conflict(
            f"{run.name} has succeeded: there is nothing to retry",
            f'perdure update {run.name} "new instructions"',
        )
    if agent and agent != run.spec.agent:
        engine.driver(agent).locate(engine.environ)
        run = engine.store.reassign(run.id, changed_spec(run.spec, agent, NO_CHANGES))
    spec = changed_spec(run.spec, agent, changes)
    if spec != run.spec:
        refusal = refused(
            engine.driver, engine.environ, spec, Path(run.workspace.path if run.workspace else "/")
        )
        if refusal:
            raise UsageError(refusal)
        run = engine.store.reassign(run.id, spec)
    # An earlier attempt may have parked the account because of a usage limit. The person's request
    # ends the parking. If the limit still holds, the next attempt parks the account again.
    run = engine.store.get(run.id)
    driver = engine.driver(run.spec.agent)
    engine.store.unpark(*what_may_be_parked(engine.environ, run, driver))
    more = changes.attempts or 1
    return engine.store.requeue(run.id, "requested by you", more, after_success=taken_back)


def changed_spec(spec: TaskSpec, agent: str, changes: Changes) -> TaskSpec:
    """Return the run's specification with the changes of a retry. Raises UsageError."""
    given = {}
    for name in _CHANGEABLE:
        if (value := getattr(changes, name)) is not None:
            given[name] = value
    if changes.attempts is not None:
        specification.check(replace(spec, attempts=changes.attempts))
    if agent and agent != spec.agent:
        given = {"agent": agent, "model": "", "agent_args": (), "forks": "", "fork_at": 0} | given
    if given:
        return specification.check(replace(spec, **given))
    return spec


def _has_spent_its_budget(run: TaskRun) -> bool:
    messages = [condition.message for condition in run.conditions]
    return run.state is RunState.FAILED and any(map(is_about_budget, messages))


def update(
    engine: Engine,
    ref: str,
    text: str,
    files: FileRequest | None = None,
    changes: Changes = NO_CHANGES,
) -> TaskRun:
    """Give a run new instructions and files, and return the run. If an attempt is running, the run
    is queued when that attempt has ended; otherwise it is queued immediately. The settings of a
    running run cannot be changed.

    Raises UsageError, Conflict.
    """
    spec = changed_spec(engine.store.get(ref).spec, "", changes)
    run = may_instruct(engine, engine.store.get(ref), text)
    if files and engine.host.elsewhere(run):
        raise Conflict(
            f"{run.name} runs on {run.host_name}: task files can only be given there",
            f"perdure update {run.name}, on that host",
        )
    given = take_files(engine.state, files)
    if spec != run.spec:
        engine.store.reassign(run.id, spec)
    return engine.store.update(run.id, text, given)


class RequestReader(RunStore, RequestStore, Protocol):
    """The store methods that read requests."""


def requests(store: RequestReader, ref: str = "") -> Sequence[AgentRequest]:
    """Return requests, oldest first: all requests of the run `ref`, or without `ref` the open
    requests of all runs."""
    if not ref:
        return store.open_requests()
    return store.requests(store.get(ref).id)


def answer(
    engine: Engine,
    ref: str,
    number: int,
    verdict: AnswerKind,
    words: str,
    by: str = "",
    *,
    via: str = "",
) -> tuple[TaskRun, AgentRequest]:
    """Answer a request of a run's agent, and return the run and the request. The run becomes due
    when its last open request is answered.

    `number`: 0 means the only open request. `via`: the forge comment that contains the answer.
    Raises UsageError, NotFound, Conflict.
    """
    run = engine.store.get(ref)
    if (moved := moved_to(engine.state, run.id)).exists():
        raise Conflict(
            f"{run.name} was moved to {moved.read_text(encoding='utf-8').strip()}",
            f"answer it on the machine that has it now: perdure requests {run.name}",
        )
    made = engine.store.requests(run.id)
    opened = [each for each in made if each.state is RequestState.OPEN]
    number = number or only_open(run, made, verdict)
    if len(words) > WORDS:
        raise UsageError(f"An answer has at most {WORDS} characters, got {len(words)}")
    asked = next((each for each in opened if each.number == number), None)
    if asked is not None:
        check_answer(run.name, asked, verdict, words)
    answered = engine.store.answer(
        run.id, number, verdict, engine.redactor.text(words), by, via=via
    )
    from perdure.host.wakeup import ring

    ring(engine.state)
    return answered


def only_open(run: TaskRun, made: Sequence[AgentRequest], verdict: AnswerKind) -> int:
    """Return the number of the request that an answer without a number is meant for. `made`: all
    requests of the run, oldest first. Raises Conflict if no request is open; the message tells what
    became of the newest one. Raises UsageError if several requests could be meant."""
    opened = [each for each in made if each.state is RequestState.OPEN]
    if not opened:
        last = f". {late(made[-1])}" if made else ""
        raise Conflict(f"{run.name} has no open request{last}", f"perdure requests {run.name}")
    fitting = [each for each in opened if (verdict is AnswerKind.TEXT) == bool(questions(each))]
    if len(opened) > 1 and len(fitting) != 1:
        numbers = ", ".join(str(each.number) for each in opened)
        raise UsageError(
            f"{run.name} has several open requests: {numbers}",
            f"perdure requests {run.name}, then name the request",
        )
    return (fitting or opened)[0].number


def check_answer(
    name: str, request: AgentRequest, verdict: AnswerKind, words: str, program: str = "perdure"
) -> None:
    """Check that an answer fits its request. `name`: the run's name. `program`: the command to use
    in the hints of error messages. Raises UsageError."""
    question = request.kind is RequestKind.QUESTION
    if verdict is AnswerKind.TEXT and not question:
        raise UsageError(
            f"Request {request.number} asks for a call to be allowed; it is not a question",
            f"{program} approve {name}, or {program} deny {name}",
        )
    if verdict is AnswerKind.ALLOW and question:
        raise UsageError(
            f"Request {request.number} is a question", f'{program} answer {name} "your answer"'
        )
    if verdict is AnswerKind.TEXT and not words.strip():
        raise UsageError("The answer is empty", f'{program} answer {name} "your answer"')
    if verdict is AnswerKind.ALLOW and (why := why_not_allowed(request)):
        raise UsageError(f"The call is {why}, so it can only be refused", f"{program} deny {name}")


def may_instruct(engine: Engine, run: TaskRun, text: str) -> TaskRun:
    """Check that the run can get these instructions, and return the run. If its supervisor has
    died, the run is taken over first. Raises UsageError, Conflict."""
    refuse_moved(engine.state, run)
    check_prompt(text, engine.driver(run.spec.agent).abilities.max_prompt_bytes)
    refuse_open(engine.store, run)
    return (rescue(engine, run) if run.state is RunState.RUNNING else None) or run


def refuse_moved(state: Path, run: TaskRun) -> None:
    """Raise Conflict if the run was moved to a checkpoint store, so that it may continue on another
    machine."""
    if (moved := moved_to(state, run.id)).exists():
        url = moved.read_text(encoding="utf-8").strip()
        raise Conflict(
            f"{run.name} was moved to {url}",
            f"perdure move {run.origin or run.id} --from {url} --name NEW takes it over here again",
        )


def require_not_running(engine: Engine, run: TaskRun, so: str) -> TaskRun:
    """Return the run if no attempt of it is running. If its supervisor has died, the run is taken
    over first. Raises Conflict if the run is running, open, or on another host. `so`: the end of
    the error message, such as "it cannot be restored"."""
    if run.state is RunState.RUNNING:
        rescued = rescue(engine, run)
        if rescued is None or rescued.state is RunState.RUNNING:
            raise Conflict(
                f"{run.name} is running (attempt {run.attempt}), so {so}",
                f"perdure stop {run.name}",
            )
        run = rescued
    refuse_open(engine.store, run)
    require_here(engine.host, run, so)
    return run


def refuse_open(store: RunStore, run: TaskRun) -> None:
    """Raise Conflict if a person has opened the run, or another run that uses the same conversation
    or workdir, in the agent's own program."""
    if (other := store.opened_beside(run)) is not None:
        raise Conflict(
            f"{other.name} is open in the agent's own program", f"perdure take-back {other.name}"
        )


def stop(engine: Engine, ref: str) -> TaskRun:
    """Stop a run: end its agent gracefully, and return the run. The supervisor records the end, so
    the returned run may still be running. Raises NotFound, and Conflict for a finished run."""
    run = engine.store.get(ref)
    if run.state in FINAL:
        word = f"has already ended ({run.state})"
        if run.state is RunState.CANCELLED:
            word = "is already stopped"
        raise Conflict(f"{run.name} {word}", f"perdure show {run.name}")
    run = engine.store.request_cancel(run.id)
    if run.state is not RunState.RUNNING:
        return run
    attempts = engine.store.attempts(run.id)
    if attempts and attempts[-1].directory:
        directory = Path(attempts[-1].directory)
    else:
        directory = None
    for at_work in (directory, *directory.glob("verify-*")) if directory is not None else ():
        agent = process.find(at_work)
        if agent is not None:
            agent.stop("stopped")
    return rescue(engine, run) or engine.store.get(run.id)


def diff(
    store: EngineStore,
    workspaces: Workspaces,
    host: Host,
    ref: str,
    *,
    stat: int = 0,
    binary: bool = False,
    most: int = 1 << 30,
) -> bytes:
    """Return the run's changes since its start, as a git patch. The bytes are untrusted, so they
    must be cleaned before they are shown.

    `stat`: return a summary with this many columns instead. `binary`: include binary files, so that
    `git apply` accepts the patch. Raises NotFound if the workdir is gone. Raises UsageError if it
    is not in a git repository, or if the result is larger than `most` bytes.
    """
    run = store.get(ref)
    place = _present(host, run)
    return workspaces.diff(place, stat=stat, binary=binary, most=most)


def apply(
    store: EngineStore,
    workspaces: Workspaces,
    host: Host,
    ref: str,
    to: Path,
    *,
    commit: bool = False,
) -> Applied:
    """Merge the run's changes into the checkout at `to`, and return the result. If not all of them
    can be merged, nothing changes, and `Applied.refused` has the reasons.

    Raises Conflict while the run is running, UsageError if there are no changes to apply, NotFound
    if the workdir is gone or `to` is not a checkout.
    """
    run = store.get(ref)
    place = _placed(run)
    if run.state is RunState.RUNNING:
        raise Conflict(
            f"{run.name} is still running (attempt {run.attempt})",
            f"perdure attach {run.name}, or perdure stop {run.name}",
        )
    if place.backend is Backend.HERE:
        raise UsageError(
            f"{run.name} worked in {place.path} itself, so its changes are already there",
            f"perdure diff {run.name}",
        )
    _present(host, run)
    first = title_of_run(run)[:72]
    text = f"{first}\n\nRun: {run.name} ({run.id})\nAgent: {run.spec.agent}\n"
    applied = workspaces.apply(place, to, run.spec.agent, text if commit else "")
    from perdure.engine.unsaved import recheck

    recheck(store, workspaces, host, run)
    return applied


class RemovedRuns(Struct, frozen=True, kw_only=True):
    """The result of removing a run from the list. `kept`: the reason why the workdir was not moved
    to the trash; empty if it was moved."""

    run: TaskRun
    trash: Path | None
    kept: str = ""
    unsaved: tuple[str, ...] = ()
    """Descriptions of the changes that now exist only in the trash."""


def remove(
    store: RunStore, workspaces: Workspaces, host: Host, ref: str, *, force: bool = False
) -> RemovedRuns:
    """Remove a finished run from the list, move its workdir into the trash, and return the result.
    The run's branch, journal and transcript copies are kept.

    Raises Conflict for a run that is not finished or that a person has opened. Without `force`,
    raises WorkspaceError if the workdir has changes that are not saved elsewhere; the message lists
    them.
    """
    run = store.get(ref)
    place = _placed(run)
    if not force:
        require_here(host, run, "it cannot be removed")
    if run.state not in FINAL:
        raise Conflict(f"{run.name} is {run.state}, and not finished", f"perdure stop {run.name}")
    if (opened := store.opened_beside(run)) is not None:
        raise Conflict(
            f"{opened.name} is open in the agent's own program", f"perdure take-back {opened.name}"
        )
    others = []
    for row in store.find(limit=100_000):
        if row.place == place.path and row.id != run.id:
            others.append(row.name)
    if host.elsewhere(run):
        kept = f"it is on {run.host_name}"
    elif others:
        kept = f"{', '.join(others[:3])} also works there"
    elif place.backend is Backend.HERE:
        kept = "it is your own directory"
    else:
        kept = workspaces.conflict(place).rstrip(".")
    if kept:
        store.remove(run.id)
        return RemovedRuns(run=run, trash=None, kept=kept)
    fd = workspaces.lock(place, f"perdure rm {run.name}")
    try:
        lost = workspaces.unsaved(place)
        if not os.path.lexists(place.path):
            gone = cleaned_up(store, run)
        else:
            gone = None
        if gone is not None and gone.needed and not force:
            raise WorkspaceError(
                f"The workdir of {run.name} was cleaned up, and checkpoint {gone.checkpoint} is "
                f"the only copy of its work",
                f"perdure restore {run.name} restores it; or perdure rm --force {run.name}: its "
                "checkpoints are deleted after their retention time",
            )
        if lost and not force:
            raise WorkspaceError(
                f"The workdir of {run.name} has changes that exist nowhere else: {'; '.join(lost)}",
                f"perdure diff {run.name}, perdure apply {run.name}; or perdure rm --force "
                f"{run.name}: the trash keeps it",
            )
        # The run is removed from the list before its workdir is moved, so that no attempt can start
        # in the workdir meanwhile.
        store.remove(run.id)
        about = {
            "verb": "rm",
            "run": run.name,
            "id": run.id,
            "agent": run.spec.agent,
            "key": run.spec.key,
            "unsaved": lost,
        }
        return RemovedRuns(
            run=run, trash=workspaces.trash_workdir(place, about), unsaved=tuple(lost)
        )
    finally:
        os.close(fd)


def _placed(run: TaskRun) -> Workspace:
    assert run.workspace is not None
    return run.workspace


def _present(host: Host, run: TaskRun) -> Workspace:
    """Return the run's workspace. Raises NotFound if the workdir does not exist, Conflict if it is
    on another host."""
    place = _placed(run)
    require_here(host, run, "its changes cannot be seen")
    if not Path(place.path).is_dir():
        verb = "restore" if run.attempt else "retry"
        raise NotFound(
            f"the workdir of {run.name} is not here: {place.path}", f"perdure {verb} {run.name}"
        )
    return place


def describe(store: ReportStore, state: Path, host: Host, ref: str) -> RunReport:
    """Return the report of a run, which is the object that `--json` prints."""
    # Imported here because an agent's start should not wait for this import.
    from perdure.engine.report import report_of

    run = store.get(ref)
    liveness = liveness_of(store, state, host, run)
    return report_of(store, store.get(ref) if liveness is None else run, liveness=liveness)


def work(store: RunStore, ref: str, number: int = 0) -> WorkReport:
    """Return the work report of an attempt (`number` 0: the newest attempt). Raises NotFound."""
    from perdure.rules.work_report import work_report

    run = store.get(ref)
    attempts = [each for each in store.attempts(run.id) if number in (0, each.number)]
    if not attempts:
        raise NotFound(f"{run.name} has no attempt {number or 1}", f"Try: perdure show {run.name}")
    return work_report(attempts[-1], work_records(store, attempts[-1]))


def liveness_of(store: RunStore, state: Path, host: Host, run: Running) -> Liveness | None:
    """Return which processes of a running run are alive; None if the run is not running. `run` may
    also be a row of a list."""
    return probe_of(state, host).liveness(run, store.now(), partial(store.get, run.id))


def probe_of(state: Path, host: Host) -> process.Probe:
    """Return an object that checks whether processes of this host's attempts are alive."""
    return process.Probe(state, host)


EXIT_CODES: dict[int, str] = {
    0: "the run succeeded",
    1: "the run failed",
    2: "the command or the configuration is wrong",
    3: (
        "a person is needed: the conversation could not continue, the agent asks, a call of a tool "
        "was denied, the model refused, the budget is spent, or the agent crashes again and again"
    ),
    4: "the agent has no valid credentials",
    5: "not found: run, repository, base, agent or its program",
    6: "conflict: already running, or the name or key is taken",
    7: "perdure's own state, the disk or the workdir cannot be used",
    8: (
        "a receipt does not verify: it was changed, another key signed it, or it is about another "
        "run or commit; or the audit trail was changed"
    ),
    75: "not finished: it waits for a later time and stays queued",
    130: "stopped",
}

_BY_OUTCOME = {
    OutcomeKind.AUTH_FAILED: 4,
    OutcomeKind.CONTINUITY_LOST: 3,
    OutcomeKind.CONFIG_ERROR: 7,
}


def exit_code(run: TaskRun, last: OutcomeKind | None) -> int:
    """Return the exit code for a command that has followed the run to its end. `last`: outcome of
    the newest attempt."""
    asks = ("needs_person", WAITING)
    return code_of(run.state, last, any(condition.type in asks for condition in run.conditions))


def code_of(state: RunState, last: OutcomeKind | None, asks: bool) -> int:
    """Return the exit code for a run's state. `last`: outcome of the newest attempt. `asks`:
    whether a person is needed."""
    match state:
        case RunState.SUCCEEDED:
            return 0
        case RunState.CANCELLED:
            return 130
        case RunState.FAILED:
            if last:
                return _BY_OUTCOME.get(last, 3 if asks else 1)
            return 1
        case RunState.QUEUED if asks:
            return 3
        case _:
            return 75


def last_outcome(store: RunStore, run: TaskRun) -> OutcomeKind | None:
    """Return the kind of the newest attempt's outcome; None if no attempt has ended."""
    outcomes: list[OutcomeKind] = []
    for attempt in store.attempts(run.id):
        if attempt.outcome is not None:
            outcomes.append(attempt.outcome.kind)
    if outcomes:
        return outcomes[-1]
    return None


def take_files(state: Path, files: FileRequest | None) -> Given:
    """Store task files that a person gives together with instructions, and return a description of
    them."""
    if not files:
        return NOTHING_GIVEN
    from perdure.workspace.task_files import Contents, take

    return take(Contents(state), files)
