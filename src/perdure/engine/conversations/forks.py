"""Forks a run: makes a new run whose conversation and workdir begin as copies of another run's.

The parent is only read: its transcript, its commits, its uncommitted files. The new run has its own
branch, which starts at the parent's HEAD. Uncommitted changes are copied and stay uncommitted.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import Copies, locate, snapshot
from perdure.engine import checkpoints, service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.workdir import reopen
from perdure.errors import Conflict, NotFound, UsageError, WorkspaceError
from perdure.host.homes.linked_homes import LinkedHomes
from perdure.model import (
    NOTHING_GIVEN,
    SAFETY_REASONS,
    Backend,
    Checkpoint,
    Continuation,
    Given,
    Launch,
    Session,
    SessionKey,
    Start,
    TaskRun,
    TaskSpec,
    Workspace,
)
from perdure.protocols import AgentDriver, RunStore, SessionStore
from perdure.rules.run_names import suggest
from perdure.rules.run_titles import title_of_run
from perdure.workspace import Workspaces

GO_ON = (
    "Go on with the task above in this copy of the working directory. Look first at what is "
    "already done, finish what is missing, and say what you did."
)


class ForkRequest(Struct, frozen=True, kw_only=True):
    """A person's request for a fork. `at`: number of the last turn of the parent's conversation
    that the fork contains, counted from 1; 0 means all turns."""

    prompt: str = ""
    at: int = 0
    checkpoint: int = 0
    """Number of the parent's checkpoint whose files and conversation the fork gets; 0 means the
    parent's current state."""
    name: str = ""
    branch: str = ""
    id: str = ""
    """Id of the new run; if empty, one is generated. A fork with a given id can be repeated after
    an interruption. The workdir that the interrupted fork left behind is then moved into the trash.
    """
    task: str = ""
    """Name of the fork's task, if the parent is a task of a service. If this is empty, the name of
    the new run is used."""
    pass_env: tuple[str, ...] | None = None
    """Names of environment variables to pass to the agent; None keeps the parent's list."""
    given: Given = NOTHING_GIVEN
    """Task files that are given with the prompt."""


def fork(engine: Engine, ref: str, wanted: ForkRequest) -> TaskRun:
    """Make a new run that begins as a fork of another run, queue the new run, and return it. Raises
    UsageError, NotFound, Conflict or WorkspaceError. After any of these errors, neither a new run
    nor a new workdir is left."""
    parent = service.require_not_running(
        engine, engine.store.get(ref), "it has no settled state to fork"
    )
    driver = engine.driver(parent.spec.agent)
    if wanted.checkpoint:
        checkpoint = checkpoints.chosen(engine.store, parent, wanted.checkpoint)
    else:
        checkpoint = None
    session = _session(engine.store, parent, checkpoint)
    prompt = wanted.prompt or GO_ON
    service.check_prompt(prompt, driver.abilities.max_prompt_bytes)
    name = _name(engine.store, wanted.name)
    spec = replace(
        parent.spec,
        prompt=prompt,
        name=wanted.name,
        key="",
        scope="",
        forks=session.id,
        fork_at=wanted.at,
        title="" if wanted.prompt else title_of_run(parent),
    )
    if wanted.pass_env is not None:
        spec = replace(spec, pass_env=wanted.pass_env)
    if checkpoint is not None:
        home = driver.home({**engine.environ, **parent.spec.env})
        forked = checkpoint.conversation[0].session_id
        path = locate(driver, home, forked, engine.state / "forks" / forked)
        turn = _turn_of(engine.copies, driver, path, parent, checkpoint)
        spec = replace(spec, fork_at=turn)
    reopen(engine.store, engine.workspaces, engine.state, parent, f"perdure fork {parent.name}")
    source = _source(parent)
    fd = engine.workspaces.lock(source, f"perdure fork {parent.name}")
    try:
        head = checkpoint.workdir.head if checkpoint is not None else ""
        spec = _placed(engine.workspaces, spec, source, wanted.branch, wanted.task or name, head)
        target = engine.workspaces.plan(spec, name, Path(source.path))
        if wanted.id:
            _clear(engine.store, engine.workspaces, target, name)
        _refuse(engine.homes, engine.environ, engine.state, driver, session, spec, target)
        run_id = wanted.id or uuid.uuid4().hex
        with _made(engine.workspaces, spec.agent, name, source, target, checkpoint):
            return engine.store.add(spec, run_id, name, target, wanted.given)
    finally:
        os.close(fd)


def _session(store: SessionStore, parent: TaskRun, checkpoint: Checkpoint | None) -> Session:
    """Return the session of the conversation to fork. Raises NotFound."""
    key = SessionKey(parent.spec.agent, parent.scope)
    live = store.session(key)
    if checkpoint is not None and (live is None or checkpoint.session_id != live.id):
        lineage = [session for session in store.lineage(key) if session.id == checkpoint.session_id]
        live = lineage[-1] if lineage else None
    if live is None:
        if checkpoint is not None:
            what = f"at checkpoint {checkpoint.number}"
        else:
            what = "yet"
        raise NotFound(
            f"{parent.name} has no conversation {what} that could be forked",
            f"perdure show {parent.name}",
        )
    return live


BETWEEN_TURNS = frozenset({"turn", "end", *SAFETY_REASONS})
"""Values of `Checkpoint.why` for checkpoints that can be forked. The conversation of such a
checkpoint ends with a complete turn or an interrupted attempt, so another prompt may follow."""


def _turn_of(
    copies: Copies,
    driver: AgentDriver,
    path: Path | None,
    parent: TaskRun,
    checkpoint: Checkpoint,
) -> int:
    """Return the number of the turn at which the checkpoint's conversation ends. Return 0 if the
    conversation still ends there, because nothing was added to it since the checkpoint. `path`: the
    conversation's transcript. Raises UsageError if the beginning of the conversation has changed,
    if the checkpoint was taken within a turn, or if the agent's CLI cannot fork at that turn."""
    main = checkpoint.conversation[0]
    back = (
        f"perdure restore {parent.name} --at {checkpoint.number} returns {parent.name} itself to it"
    )
    if path is None or not copies.begins_with(path, main):
        raise UsageError(
            f"the conversation of {parent.name} has changed since checkpoint {checkpoint.number}",
            back,
        )
    if copies.is_exactly(path, main):
        return 0
    if not driver.abilities.fork_at:
        raise UsageError(
            f"{parent.spec.agent} forks a conversation only at its end, and it has continued "
            f"since that checkpoint",
            back,
        )
    if checkpoint.why not in BETWEEN_TURNS:
        raise UsageError(
            f"checkpoint {checkpoint.number} was taken within a turn; a fork starts at the end of "
            f"one",
            back,
        )
    return len(driver.prompts(path.read_bytes()[: main.size]))


def _name(store: RunStore, wanted: str) -> str:
    """Return a name that no run has: `wanted` if given, else a suggested one. Raises Conflict if
    `wanted` is taken, UsageError if it is not valid."""
    if wanted and not service.NAME.fullmatch(wanted):
        raise UsageError(
            f"{wanted!r} is not a valid name of a run",
            "use up to 63 lower-case letters, digits and hyphens",
        )
    taken = {row.name for row in store.find(limit=100_000)}
    if wanted in taken:
        raise Conflict(f"The name {wanted!r} is taken by another run", "choose another --name")
    tries = 0
    while (name := wanted or suggest(tries)) in taken:
        tries += 1
    return name


def _source(parent: TaskRun) -> Workspace:
    """Return the parent's workdir, from which the files are copied. Raises WorkspaceError if it
    does not exist."""
    assert parent.workspace is not None
    if not Path(parent.workspace.path).is_dir():
        raise WorkspaceError(
            f"The workdir {parent.workspace.path} of {parent.name} is not there",
            f"perdure retry {parent.name}",
        )
    return parent.workspace


def _placed(
    workspaces: Workspaces, spec: TaskSpec, source: Workspace, branch: str, task: str, head: str
) -> TaskSpec:
    """Return the fork's spec with its repository and a new branch. The branch starts at the HEAD of
    the parent's workdir. If the parent is a task of a service, the spec gets the new task's name
    instead. Raises UsageError."""
    if source.backend is Backend.TASK:
        if branch:
            raise UsageError(
                "a task of a service has no repository, and no branch", "leave --branch out"
            )
        return replace(spec, task=task)
    head = head or workspaces.state(source).head
    if not head:
        raise UsageError(
            f"{source.path} is not in a git repository, so a second workdir cannot be made"
        )
    if source.backend is Backend.ISOLATED:
        # The fork's clone begins at the commit at which the parent's clone began, because the
        # repository has that commit. The parent's later commits exist only in the parent's clone,
        # so they are copied together with the files.
        base = workspaces.began(source) or source.base
        return replace(
            spec, repo=source.repo, base=base, branch=branch, here="", backend=Backend.ISOLATED
        )
    return replace(
        spec,
        repo=source.repo or source.path,
        base=head,
        branch=branch,
        here="",
        backend=Backend.WORKTREE,
    )


def _clear(store: RunStore, workspaces: Workspaces, target: Workspace, name: str) -> None:
    """Move the target directory into the trash if it belongs to no run. Such a directory was left
    by a fork that was killed before its run was added. Raises Conflict if another process holds the
    directory's lock."""
    fd = workspaces.lock(target, f"perdure fork as {name}")
    try:
        runs = []
        for run in store.placed():
            if run.workspace.path == target.path:
                runs.append(run.name)
        if not runs and os.path.lexists(target.path):
            about = {"run": name, "why": "a fork that was cut off"}
            workspaces.trash_workdir(target, about)
    finally:
        os.close(fd)


def _refuse(
    homes: LinkedHomes,
    environ: Mapping[str, str],
    state: Path,
    driver: AgentDriver,
    session: Session,
    spec: TaskSpec,
    target: Workspace,
) -> None:
    """Raise UsageError if the agent's CLI cannot make this fork, NotFound if the conversation is
    gone, or Conflict if the new workdir already exists."""
    if not driver.abilities.fork:
        raise UsageError(f"{spec.agent} cannot fork a conversation")
    if spec.fork_at and not driver.abilities.fork_at:
        raise UsageError(
            f"{spec.agent} forks a conversation only at its end, not at an earlier turn",
            "leave --turn out",
        )
    if os.path.lexists(target.path):
        raise Conflict(
            f"The branch {target.branch or target.path} already has a workdir",
            "choose another --branch or --name",
        )
    homes.check(driver.name)
    home = driver.home({**environ, **spec.env})
    path = locate(driver, home, session.id, state / "forks" / session.id)
    there = snapshot(driver, path)
    if path is None or there is None or not there.turns:
        raise NotFound(
            f"The transcript of the conversation {session.id} is not on disk",
            "perdure retry NAME, with the name of its run: it restores perdure's copy",
        )
    if not 0 <= spec.fork_at <= there.turns:
        raise UsageError(
            f"--turn {spec.fork_at}: the conversation has {there.turns} turn(s)",
            f"a number from 1 to {there.turns}",
        )
    launch = Launch(
        spec=spec,
        continuation=Continuation(kind=Start.FORK, session_id=session.id, fork_at=spec.fork_at),
        prompt=spec.prompt,
        cwd=target.path,
        home=str(home),
        program=driver.locate(environ),
        transcript=str(path),
    )
    if refusal := driver.refuse(launch):
        raise UsageError(refusal)
    try:
        driver.command(launch)
    except ValueError as error:
        raise UsageError(f"{spec.agent} cannot fork there: {error}") from error


@contextmanager
def _made(
    workspaces: Workspaces,
    agent: str,
    name: str,
    source: Workspace,
    target: Workspace,
    checkpoint: Checkpoint | None,
) -> Iterator[None]:
    """Make the workdir, then run the `with` block, which adds the run. If the run were added first,
    a pool could claim it while its workdir is incomplete. If the block fails, the workdir is moved
    into the trash."""
    fd = workspaces.lock(target, f"perdure fork as {name}")
    try:
        workspaces.prepare(target, agent)
        try:
            if target.backend is Backend.ISOLATED and workspaces.existing_branches(
                target, [target.branch]
            ):
                raise Conflict(
                    f"{target.repo} already has a branch {target.branch}",
                    "choose another --branch or --name",
                )
            if checkpoint is None:
                workspaces.checkpoints.copy_state(source, target)
            else:
                workspaces.checkpoints.copy_checkpoint(source, checkpoint.workdir.commit, target)
            yield
        except BaseException:
            workspaces.trash_workdir(target, {"run": name, "why": "a fork that could not be made"})
            raise
    finally:
        os.close(fd)
