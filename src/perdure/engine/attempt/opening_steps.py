"""Starts an attempt, in this order: fetch the run's files to this host, lock the workdir, find the
conversation, decide how to continue it, store the start (`preparation`), launch the agent
(`launch`).

The agent is not started before the attempt's start is stored, except for a summary turn
(`rollover`) and for the test of a repaired transcript (`repair`). `reopen_attempt` returns an
attempt that another supervisor had started.

`check_home` and `check_temporary` check that an agent can store its conversation and run commands.
They are also called when a run is added, and by `perdure doctor`. An agent that cannot write to its
home works without an error message, but its conversation cannot be resumed later. Observed with
Claude Code 2.1.329 and Codex 0.169.0 in a home that is read-only or belongs to another user. Where
/tmp is read-only and TMPDIR is not set, every command of Claude Code fails, and so does every
command in Codex's sandbox. The agents' tasks still end without an error.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.transcripts import Copies
from perdure.engine.attempt import launch
from perdure.engine.attempt.engine import (
    Engine,
    EngineStore,
    agent_environment,
    moved_to,
    unavailable_reason,
)
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.preparation import CopyNotInPlace, begin
from perdure.engine.attempt.start_facts import NotStarted, decide
from perdure.engine.attempt.warm_agents import Idle
from perdure.engine.attempt.workdir import restore_if_missing
from perdure.errors import InUse, LostLease, PerdureError, WorkspaceError
from perdure.host import process
from perdure.model import (
    Claim,
    Host,
    Outcome,
    OutcomeKind,
    Permissions,
    Rung,
    Session,
    SessionKey,
    SessionState,
    Workspace,
)
from perdure.model.events import SessionsRebuilt, WorkdirNoted
from perdure.protocols import AgentDriver, Publisher
from perdure.workspace import Workspaces

_FOLDERS = ("projects", "sessions", "tmp")
"""Directories in the agents' homes where Claude Code, Codex and Gemini CLI keep conversations.
After a single run of `sudo claude`, one of these directories may belong to root."""


def check_home(driver: AgentDriver, home: Path) -> None:
    """Raise WorkspaceError if the agent could not save its conversation. Agents that store no
    conversations are not checked."""
    if not driver.abilities.sessions:
        return
    for place in (home, *(home / name for name in _FOLDERS)):
        if place != home and not os.path.lexists(place):
            continue
        if why := unwritable(place):
            raise WorkspaceError(
                f"{driver.name} could not save its conversation: {why}",
                f"Make {place} writable for this user, or set HOME to a writable directory.",
            )


def check_temporary(
    driver: AgentDriver, permissions: Permissions, environ: Mapping[str, str]
) -> None:
    """Raise WorkspaceError if the agent needs temporary files to run commands and cannot write
    them."""
    if permissions not in driver.abilities.temporary_files:
        return
    place = Path(environ.get("TMPDIR") or "/tmp")
    if why := unwritable(place):
        raise WorkspaceError(
            f"{driver.name} could run no command: it needs temporary files, and {why}",
            "Set TMPDIR to a directory that can be written.",
        )
    private = driver.abilities.private_directory.format(uid=os.geteuid())
    why = _not_private(Path(private)) if private else ""
    if why:
        raise WorkspaceError(
            f"{driver.name} could run no command: its sandbox needs {private}, and {why}",
            f"Make {private} a directory of this user with mode 0700, or use permissions full, "
            "which has no sandbox.",
        )


def _not_private(place: Path) -> str:
    """Return the reason why a directory is not private to this user; empty if it is. A directory
    that does not exist is accepted if it can be created."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return unwritable(place)
    if not stat.S_ISDIR(found.st_mode):
        return f"{place} is not a directory"
    if found.st_uid != os.geteuid():
        return f"{place} belongs to another user"
    if stat.S_IMODE(found.st_mode) != 0o700:
        return f"{place} does not have mode 0700"
    return ""


def unwritable(place: Path) -> str:
    """Return the reason why nothing can be written at a path; empty if it is writable. A path that
    does not exist is writable if it can be created."""
    there = place
    while not os.path.lexists(there):
        there = there.parent
    if not there.exists():
        return f"{there} is a dangling link"
    if there.is_file() and there == place:
        if os.access(there, os.W_OK):
            return ""
        return f"{there} is not writable"
    if not there.is_dir():
        return f"{there} is not a directory"
    if os.access(there, os.W_OK | os.X_OK):
        return ""
    if there == place:
        return f"{there} is not writable"
    return f"{place} cannot be created, because {there} is not writable"


BRIEFLY_S = 30.0


def open_attempt(engine: Engine, claim: Claim) -> LiveAttempt:
    """Start the attempt and return it. Raises NotStarted, or a PerdureError of the workspace or the
    driver."""
    with engine.homes.still():
        return _open(engine, claim)


def _locked(workspaces: Workspaces, place: Workspace) -> int:
    """Lock the workdir and return the lock's file descriptor. Wait for a holder that needs the lock
    only briefly, such as a commit. Raises InUse."""
    end = time.monotonic() + BRIEFLY_S
    while True:
        try:
            return workspaces.lock(place, keep_waiting_agents=True)
        except InUse as use:
            if not use.brief or time.monotonic() >= end:
                raise
            time.sleep(0.05)


def _open(engine: Engine, claim: Claim) -> LiveAttempt:
    claim = _brought_here(engine.host, engine.publisher, engine.workspaces, claim)
    run = claim.run
    assert run.workspace is not None
    driver = engine.driver(run.spec.agent)
    program = driver.locate(engine.environ)
    engine.homes.check(run.spec.agent)
    environ = {**engine.environ, **run.spec.env}
    home = driver.home(environ)
    check_home(driver, home)
    check_temporary(driver, run.spec.permissions, environ)
    if (moved := moved_to(engine.state, run.id)).exists():
        url = moved.read_text(encoding="utf-8").strip()
        raise NotStarted(
            Outcome(
                kind=OutcomeKind.CONFIG_ERROR,
                detail=(
                    f"{run.name} was moved to {url}; perdure move {run.origin or run.id} --from "
                    f"{url} --name NEW takes it over here again"
                ),
            )
        )
    if engine.publisher is not None and (refused := engine.publisher.refused(run)):
        raise NotStarted(Outcome(kind=OutcomeKind.CONFIG_ERROR, detail=refused))
    lock_fd = _locked(engine.workspaces, run.workspace)
    idle: Idle | None = None
    try:
        lineage = _lineage(
            engine.store, engine.copies, engine.session_lifetime_s, claim, driver, home
        )
        live = next(
            (session for session in lineage if session.state is not SessionState.RETIRED), None
        )
        if engine.warm is not None:
            idle = engine.warm.borrow(run.workspace, live.id if live is not None else "")
        else:
            idle = None
        restore_if_missing(engine.store, engine.workspaces, engine.state, run)
        prepared = engine.workspaces.prepare(run.workspace, run.spec.agent)
        if prepared.notes:
            engine.store.record(
                claim, [WorkdirNoted(note=engine.redactor.text(note)) for note in prepared.notes]
            )
        prepared = replace(prepared, env=prepared.env | engine.committer(run))
        decided = decide(engine, claim, driver, home, live, lineage, idle)
        continuation = decided.continuation
        lifetime_s = lineage[-1].lifetime_s if lineage else 0.0
        if idle is not None and continuation.rolls_over:
            idle.kept.end()
            idle = None
        if continuation.rolls_over and live is not None:
            own = {**agent_environment(engine.environ, driver, run), **prepared.env}
            from perdure.engine.attempt.rollover import request_summary

            live = request_summary(engine, claim, driver, program, home, live, own, lock_fd)
        fresh = prepared.created
        opened = None
        failed: frozenset[Rung] = frozenset()
        while opened is None:
            try:
                opened = begin(
                    engine, claim, driver, program, home, decided, live, lifetime_s, fresh=fresh
                )
            except CopyNotInPlace as error:
                failed |= {error.rung}
                decided = decide(engine, claim, driver, home, live, lineage, idle, failed)
        opened.lock_fd = lock_fd
        lent, idle = idle, None
        launch.start(engine, opened, program, prepared.env, lent)
    except BaseException:
        if idle is not None:
            idle.kept.end()
        os.close(lock_fd)
        raise
    return opened


def _lineage(
    store: EngineStore,
    copies: Copies,
    session_lifetime_s: float,
    claim: Claim,
    driver: AgentDriver,
    home: Path,
) -> Sequence[Session]:
    """Return the sessions of the run's scope. They are read from the store, never from a cache. If
    no session is in use, lost records are rebuilt first."""
    key = SessionKey(claim.run.spec.agent, claim.run.scope)
    lineage = store.lineage(key)
    if any(session.state is not SessionState.RETIRED for session in lineage):
        return lineage
    from perdure.engine.sessions.rebuild import missing

    lost = missing(store, key, driver, home, copies, session_lifetime_s)
    if not lost:
        return lineage
    for session in lost:
        store.put_session(session)
    store.record(claim, [SessionsRebuilt(sessions=tuple(session.id for session in lost))])
    return store.lineage(key)


def _brought_here(
    host: Host, publisher: Publisher | None, workspaces: Workspaces, claim: Claim
) -> Claim:
    """Return the claim. If the run's files are on another host, fetch them to this one first. A run
    that never started gets the workdir that this host would plan for it. Raises NotStarted and
    LostLease."""
    run = claim.run
    if why := unavailable_reason(host, publisher, run):
        raise NotStarted(Outcome(kind=OutcomeKind.WRITER_CONFLICT, detail=why))
    if host.elsewhere(run):
        assert publisher is not None
        try:
            return replace(claim, run=publisher.fetch(claim))
        except LostLease:
            raise
        except (PerdureError, OSError) as error:
            detail = (
                f"its workdir and conversation could not be fetched from {run.host_name}: {error}"
            )
            raise NotStarted(Outcome(kind=OutcomeKind.WRITER_CONFLICT, detail=detail)) from error
    if host.id and not run.host and run.workspace is not None:
        place = workspaces.plan(run.spec, run.name, Path("/"))
        return replace(claim, run=replace(run, workspace=replace(place, base=run.workspace.base)))
    return claim


def reopen_attempt(
    store: EngineStore,
    driver_of: Callable[[str], AgentDriver],
    environ: Mapping[str, str],
    claim: Claim,
) -> LiveAttempt | None:
    """Return the attempt that another supervisor started before it died, with the agent's process
    if there is one. Return None if the start of the attempt was never stored."""
    attempt = next(a for a in store.attempts(claim.run.id) if a.number == claim.attempt)
    if attempt.continuation is None or not attempt.directory:
        return None
    run = claim.run
    assert run.workspace is not None
    driver = driver_of(run.spec.agent)
    parked = []
    for each in store.requests(run.id):
        if each.parked and each.given == claim.attempt:
            parked.append(each.call)
    return LiveAttempt(
        parked=tuple(parked),
        claim=claim,
        attempt=attempt,
        driver=driver,
        workspace=run.workspace,
        home=driver.home({**environ, **run.spec.env}),
        session=store.session(SessionKey(run.spec.agent, run.scope)),
        process=process.find(Path(attempt.directory)),
        adopted=True,
    )
