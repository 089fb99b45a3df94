"""Restores checkpoints, and creates one of the current state. Called by every interface.

A restore takes both the workdir and the conversation back to their state at the checkpoint. The
workdir becomes byte-identical, including its index and HEAD. The current state is first saved as a
separate checkpoint, so another restore can undo it. A restore that was killed can be run again,
because nothing is removed before it is saved elsewhere.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.agents.transcripts import locate, snapshot
from perdure.engine import service
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.attempt.repair import place_transcript
from perdure.engine.attempt.workdir import restore_from_trash
from perdure.engine.report import missed_checkpoint
from perdure.engine.unsaved import recheck
from perdure.errors import Conflict, NotFound, PerdureError, WorkspaceError
from perdure.model import (
    Checkpoint,
    Context,
    RunState,
    Session,
    SessionKey,
    SessionState,
    TaskRun,
    Workspace,
)
from perdure.model.events import CheckpointRestored
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.continuation.instructions import retired, retired_by


class RestoredRun(Struct, frozen=True, kw_only=True):
    """The result of a restore. `undo` is the checkpoint of the state before the restore; it is None
    if the workdir did not exist."""

    run: TaskRun
    checkpoint: Checkpoint
    undo: Checkpoint | None
    transcript: str = ""
    """Path of the transcript that was restored; empty if the conversation was not restored."""
    retired: tuple[Context, ...] = ()
    """Instructions that were given after the checkpoint, and therefore no longer apply."""
    revived: tuple[Context, ...] = ()
    """Instructions that an earlier restore had retired, and that now apply again."""


def chosen(store: RunStore, run: TaskRun, number: int = 0) -> Checkpoint:
    """Return the run's checkpoint with this number, or by default the newest one that was not made
    by a restore. Raises NotFound."""
    there = store.checkpoints(run.id)
    found = [each for each in there if (each.number == number if number else each.why != "restore")]
    if found:
        return found[-1]
    if number:
        known = ", ".join(str(each.number) for each in there) or "there is none"
        raise NotFound(
            f"{run.name} has no checkpoint {number}", f"perdure checkpoints {run.name}: {known}"
        )
    missed = missed_checkpoint(store.run_events(run.id))
    if missed:
        raise NotFound(
            f"{run.name} has no checkpoint, because none could be taken: {missed}", "perdure doctor"
        )
    raise NotFound(
        f"{run.name} has no checkpoint yet", "one is taken at the end of every turn and attempt"
    )


def restore(engine: Engine, ref: str, number: int = 0, *, files_only: bool = False) -> RestoredRun:
    """Take workdir and conversation back to a checkpoint, and return the result. `number`: 0 means
    the newest checkpoint that was not made by a restore.

    Raises NotFound, WorkspaceError, and Conflict while the run is in use.
    """
    with engine.homes.still():
        run = service.require_not_running(engine, engine.store.get(ref), "it cannot be restored")
        assert run.workspace is not None
        fd = engine.workspaces.lock(run.workspace, f"perdure restore {run.name}")
        try:
            # The lock keeps attempts from starting: an attempt that is claimed now finds the
            # workdir in use, and waits.
            return _restore(engine, _still_not_running(engine.store, run), number, files_only)
        finally:
            os.close(fd)


def _restore(engine: Engine, run: TaskRun, number: int, files_only: bool) -> RestoredRun:
    checkpoint, before = chosen(engine.store, run, number), run.spec
    if files_only:
        agent = before.agent
    else:
        agent = checkpoint.agent or before.agent
    driver = engine.driver(agent)
    home = driver.home({**engine.environ, **before.env})
    _refuse(engine, run, driver, home, checkpoint, files_only)
    assert run.workspace is not None
    place = run.workspace
    restore_from_trash(engine.store, engine.workspaces, engine.state, run)
    undo = save_current(engine, run, place, "restore")
    engine.workspaces.prepare(place, agent)
    if agent != before.agent:
        run = engine.store.reassign(
            run.id, replace(before, agent=agent, model="", agent_args=(), forks="", fork_at=0)
        )
    told = None
    try:
        if files_only:
            told = None
        else:
            told = restore_transcript(engine, run, driver, home, checkpoint)
        engine.workspaces.checkpoints.restore(place, checkpoint.workdir.commit)
    except (PerdureError, OSError):
        if told is not None and undo is not None and undo.session_id == checkpoint.session_id:
            restore_transcript(engine, run, driver, home, undo)
        if agent != before.agent:
            with suppress(Conflict):
                engine.store.reassign(run.id, before)
        raise
    sessions = () if files_only else sessions_of(engine.store, driver, run, checkpoint, told, home)
    contexts, records = engine.store.contexts(run.id), engine.store.run_events(run.id)
    before_it = retired(records)
    if files_only:
        now = before_it
    else:
        now = retired_by(contexts, records, checkpoint, asked=number > 0)
    event = CheckpointRestored(
        number=checkpoint.number,
        attempt=checkpoint.attempt,
        attempts=0 if files_only else run.attempt,
        undo=undo.number if undo else 0,
        files_only=files_only,
        retired=tuple(sorted(now)),
    )
    run = recheck(
        engine.store,
        engine.workspaces,
        engine.host,
        engine.store.restored(run.id, sessions, event),
        checkpoint,
    )
    return RestoredRun(
        run=run,
        checkpoint=checkpoint,
        undo=undo,
        transcript=str(told or ""),
        retired=tuple(each for each in contexts if each.version in now - before_it),
        revived=tuple(each for each in contexts if each.version in before_it - now),
    )


def _still_not_running(store: RunStore, run: TaskRun) -> TaskRun:
    """Read the run from the store again, now that its workdir is locked, and return it. Raises
    Conflict if an attempt has started meanwhile, or a person has opened the run."""
    now = store.get(run.id)
    service.refuse_open(store, now)
    if now.state is RunState.RUNNING and store.attempts(run.id)[-1].continuation is not None:
        raise Conflict(
            f"{run.name} is running (attempt {now.attempt}), so it cannot be restored",
            f"perdure stop {run.name}",
        )
    return now


def _refuse(
    engine: Engine,
    run: TaskRun,
    driver: AgentDriver,
    home: Path,
    checkpoint: Checkpoint,
    files_only: bool,
) -> None:
    """Check that the checkpoint's conversation can be restored. Called before the restore changes
    anything. Raises Conflict or WorkspaceError if it cannot be restored."""
    if files_only or not checkpoint.session_id:
        return
    driver.locate(engine.environ)
    engine.homes.check(driver.name)
    if others := engine.writers(driver, home, checkpoint.session_id):
        who = ", ".join(map(str, others))
        raise Conflict(
            f"The conversation {checkpoint.session_id} is open in another program (process {who})",
            "end that program first",
        )
    for part in checkpoint.conversation:
        if engine.copies.find(driver.name, part) is None:
            raise WorkspaceError(
                f"The conversation of checkpoint {checkpoint.number} cannot be restored: "
                f"perdure's copy of {part.name!r} is lost",
                _files_alone(run, checkpoint),
            )
    if driver.archive is not None:
        # When the agent's program imports a conversation into its archive, it keeps the messages
        # that are already there. An archive therefore cannot be taken back to an earlier state.
        there = locate(driver, home, checkpoint.session_id, _directory(engine.state, run))
        main = checkpoint.conversation[0]
        if (
            there is not None
            and there.stat().st_size >= main.size
            and not engine.copies.is_exactly(there, main)
        ):
            raise _keeps_what_came_after(run, driver, checkpoint)


def _keeps_what_came_after(
    run: TaskRun, driver: AgentDriver, checkpoint: Checkpoint
) -> WorkspaceError:
    what = (
        f"{driver.name} cannot return its conversation to checkpoint {checkpoint.number}: it "
        f"keeps what came after"
    )
    return WorkspaceError(what, _files_alone(run, checkpoint))


def _files_alone(run: TaskRun, checkpoint: Checkpoint) -> str:
    return f"perdure restore {run.name} --at {checkpoint.number} --files restores the files only"


def save_current(engine: Engine, run: TaskRun, place: Workspace, why: str) -> Checkpoint | None:
    """Save the current workdir and conversation as a checkpoint, and return it; None if the workdir
    does not exist. No attempt may be running, and the caller must hold the workdir's lock."""
    if not Path(place.path).is_dir():
        return None
    driver = engine.driver(run.spec.agent)
    home = driver.home({**engine.environ, **run.spec.env})
    session = engine.store.session(SessionKey(run.spec.agent, run.scope))
    if session is not None:
        path = locate(driver, home, session.id, _directory(engine.state, run))
        if path is not None:
            engine.copies.take(driver, session.id, path)
    if session is not None:
        parts = engine.copies.parts(driver, session.id)
    else:
        parts = ()
    number = engine.store.next_checkpoint(place.id, run.id)
    kept = Checkpoint(
        run=run.id,
        number=number,
        attempt=run.attempt,
        at=engine.store.now(),
        why=why,
        workdir=engine.workspaces.checkpoints.save(place, number),
        session_id=session.id if session is not None and parts else "",
        conversation=parts,
        context_version=session.context_version if session is not None else 0,
        agent=run.spec.agent,
    )
    engine.store.add_checkpoint(kept)
    return kept


def restore_transcript(
    engine: Engine, run: TaskRun, driver: AgentDriver, home: Path, checkpoint: Checkpoint
) -> Path | None:
    """Restore the checkpoint's conversation in the agent's home. Return the transcript's path; None
    if the checkpoint has no conversation. Raises WorkspaceError if the restored transcript differs
    from the one in the checkpoint."""
    if not checkpoint.session_id:
        return None
    main, directory = checkpoint.conversation[0], _directory(engine.state, run)
    place_transcript(
        engine,
        run,
        driver,
        driver.locate(engine.environ),
        home,
        main.session_id,
        directory / str(engine.store.now()),
        parts=checkpoint.conversation,
        exactly=True,
    )
    path = locate(driver, home, main.session_id, directory)
    if path is None or not engine.copies.is_exactly(path, main):
        raise _keeps_what_came_after(run, driver, checkpoint)
    # perdure's copy of the transcript is replaced as well. If the agent's transcript is lost later,
    # the next attempt restores this copy.
    engine.copies.take(driver, main.session_id, path, replace=True)
    return path


def sessions_of(
    store: EngineStore,
    driver: AgentDriver,
    run: TaskRun,
    checkpoint: Checkpoint,
    path: Path | None,
    home: Path,
) -> tuple[Session, ...]:
    """Return the session records to store after a restore. The checkpoint's conversation becomes
    the run's current conversation, and the previous one is retired."""
    key, now = SessionKey(run.spec.agent, run.scope), store.now()
    live = store.session(key)
    cause = f"restored to checkpoint {checkpoint.number}"
    left = (
        (replace(live, state=SessionState.RETIRED, cause=cause, updated=now),)
        if live and live.id != checkpoint.session_id
        else ()
    )
    if path is None:
        return left
    there = []
    for session in store.lineage(key):
        if session.id == checkpoint.session_id:
            there.append(session)
    if there:
        session = there[-1]
    else:
        session = Session(
            key=key,
            id=checkpoint.session_id,
            state=SessionState.CONFIRMED,
            created=now,
            updated=now,
        )
    back = replace(
        session,
        state=SessionState.CONFIRMED,
        cause="",
        updated=now,
        cwd=run.workspace.path if run.workspace else session.cwd,
        home=str(home),
        context_version=checkpoint.context_version,
        total=driver.total(path.read_bytes()),
        snapshot=snapshot(driver, path),
    )
    return (*left, back)


def _directory(state: Path, run: TaskRun) -> Path:
    return state / "runs" / run.id / "restore"
