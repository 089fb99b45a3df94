"""Continues a conversation that a person chose. If a run already uses the conversation, that run
continues; otherwise a new run is made for the conversation.

A conversation that was begun without perdure is first registered: perdure stores a confirmed
session with a scope of its own, records the current state of the transcript, and copies the
transcript. After that, it handles the conversation like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import locate, snapshot
from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.conversations.search import ConversationEntry
from perdure.errors import Conflict, NotFound, UsageError
from perdure.model import (
    Continuation,
    Launch,
    RunState,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskRun,
    TaskSpec,
)
from perdure.protocols import AgentDriver
from perdure.workspace import Workspaces


class ResumeRequest(Struct, frozen=True, kw_only=True):
    """A person's request to continue a conversation, in the conversation's own directory or in a
    worktree of `repo`.

    `spec` has the prompt, the settings of this machine and the given options. Its agent, scope and
    directory are replaced by those of the conversation.
    """

    spec: TaskSpec
    repo: str = ""
    branch: str = ""


def resume(engine: Engine, entry: ConversationEntry, wanted: ResumeRequest) -> TaskRun:
    """Return a queued run that continues the conversation. Raises UsageError, NotFound, Conflict,
    AgentMissing."""
    session = entry.session
    if session is not None and session.state is SessionState.RETIRED:
        if entry.run is not None:
            hint = f"perdure take-back {entry.run.name} --adopt {entry.id}"
        else:
            hint = "perdure sessions"
        raise Conflict(f"The conversation {entry.id} is retired: {session.cause}", hint)
    if entry.run is not None:
        return _in_its_run(engine, entry.run, wanted)
    return _take_in(engine, entry, wanted)


def _in_its_run(engine: Engine, run: TaskRun, wanted: ResumeRequest) -> TaskRun:
    if wanted.repo or wanted.branch:
        raise UsageError(
            f"this conversation belongs to {run.name}, which has a workdir",
            f"perdure fork {run.name} continues it elsewhere",
        )
    if wanted.spec.prompt:
        return service.update(engine, run.id, wanted.spec.prompt)
    if run.state is RunState.SUCCEEDED:
        raise UsageError(
            "missing the prompt",
            f'{run.name} has succeeded: perdure resume {run.name} "new instructions"',
        )
    return service.retry(engine, run.id)


def _take_in(engine: Engine, entry: ConversationEntry, wanted: ResumeRequest) -> TaskRun:
    driver = engine.driver(entry.agent)
    engine.homes.check(driver.name)
    home = driver.home(engine.environ)
    if not entry.on_disk:
        raise NotFound(
            f"The transcript of the conversation {entry.id} is not on disk",
            f"check that this is the right home: {home}",
        )
    if others := engine.writers(driver, home, entry.id):
        who = ", ".join(map(str, others))
        raise Conflict(
            f"The conversation {entry.id} is open in another program (process {who})",
            "end that program first",
        )
    service.check_prompt(wanted.spec.prompt, driver.abilities.max_prompt_bytes)
    spec = replace(_placed(entry, wanted), agent=entry.agent, scope=f"session:{entry.id}")
    _refuse(engine.workspaces, engine.environ, driver, entry, spec)
    directory = engine.state / "taken-in" / entry.id
    path = locate(driver, home, entry.id, directory)
    now = engine.store.now()
    engine.copies.take_with_ancestors(driver, home, entry.id, directory)
    engine.store.put_session(
        Session(
            key=SessionKey(entry.agent, spec.scope),
            id=entry.id,
            state=SessionState.CONFIRMED,
            created=now,
            updated=now,
            cwd=entry.cwd,
            home=str(home),
            parent=entry.parent,
            total=driver.total(path.read_bytes() if path is not None else b""),
            snapshot=snapshot(driver, path),
        )
    )
    return service.submit(engine, spec, Path(entry.cwd or "/"))


def _placed(entry: ConversationEntry, wanted: ResumeRequest) -> TaskSpec:
    """Return the spec with the directory where the run works. This is a worktree of the requested
    repository and branch or, if none is requested, the conversation's own directory. Raises
    NotFound if that directory does not exist."""
    if wanted.repo or wanted.branch:
        return replace(wanted.spec, repo=wanted.repo or entry.cwd, branch=wanted.branch, here="")
    if not entry.cwd or not Path(entry.cwd).is_dir():
        if entry.cwd:
            where = f"its directory {entry.cwd} is gone"
        else:
            where = "its directory is unknown"
        raise NotFound(
            f"The conversation {entry.id} cannot continue where it was: {where}",
            "--repo PATH continues it in a new worktree of that repository",
        )
    return replace(wanted.spec, repo="", branch="", base="", here=entry.cwd, backend="")


def _refuse(
    workspaces: Workspaces,
    environ: Mapping[str, str],
    driver: AgentDriver,
    entry: ConversationEntry,
    spec: TaskSpec,
) -> None:
    """Raise UsageError if the agent's CLI cannot continue the conversation in the directory of
    `spec`."""
    program = driver.locate(environ)
    place = workspaces.plan(spec, spec.name or "resume", Path(entry.cwd or "/"))
    launch = Launch(
        spec=spec,
        continuation=Continuation(kind=Start.RESUME, session_id=entry.id),
        prompt=spec.prompt,
        cwd=place.path,
        home=str(driver.home(environ)),
        program=program,
    )
    if (
        driver.abilities.cwd_bound
        and entry.cwd
        and Path(place.path).resolve() != Path(entry.cwd).resolve()
    ):
        raise UsageError(
            f"{entry.agent} can continue a conversation only in the directory where it started: "
            f"{entry.cwd}"
        )
    if refusal := driver.refuse(launch):
        raise UsageError(refusal)
