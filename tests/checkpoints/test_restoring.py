"""A restore while other processes use the run: a claim waits, and an impossible restore is refused
before anything is changed."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.engine.attempt import Engine, perform
from perdure.engine.checkpoints import restore
from perdure.errors import Conflict, WorkspaceError
from perdure.model import Checkpoint, CopyPart, OutcomeKind, RunState, TaskRun
from perdure.model.events import CheckpointRestored
from perdure.wiring import open_engine
from tests.sweeper.ground import Ground, make_ground


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """A machine whose agents are programs that do nothing."""
    ground = make_ground(tmp_path)
    programs = {"PERDURE_CLAUDE": "/bin/true", "PERDURE_CODEX": "/bin/true"}
    return replace(ground, engine=open_engine(ground.settings, {**ground.yard.environ, **programs}))


def queued(ground: Ground) -> tuple[TaskRun, Path]:
    """Make a run that is due, with a workdir and a checkpoint of it. The workdir has changed since."""
    spec = ground.yard.spec("worktree")
    workspace = ground.engine.workspaces.plan(spec, "task", ground.yard.repo)
    run = ground.engine.store.add(spec, uuid.uuid4().hex, "task", workspace)
    ground.prepare(workspace)
    top = Path(workspace.path)
    (top / "work.txt").write_text("at the checkpoint\n")
    checkpoint(ground.engine, run, 1)
    (top / "work.txt").write_text("later\n")
    return run, top


def checkpoint(engine: Engine, run: TaskRun, number: int, **more: object) -> Checkpoint:
    assert run.workspace is not None
    saved = engine.workspaces.checkpoints.save(run.workspace, number)
    taken = Checkpoint(
        run=run.id, number=number, attempt=0, at=1, why="end", workdir=saved, agent=run.spec.agent
    )
    taken = replace(taken, **more)  # type: ignore[arg-type]
    engine.store.add_checkpoint(taken)
    return taken


def test_an_attempt_waits_for_the_workdir(ground: Ground) -> None:
    """While another process has locked the workdir, an attempt is postponed, and that process is
    named. The attempt does not count, and no person is asked."""
    run, top = queued(ground)
    assert run.workspace is not None
    fd = ground.engine.workspaces.lock(run.workspace, "perdure restore task")
    claim = ground.engine.store.claim(ground.engine.worker, 60)
    assert claim is not None
    after = perform(ground.engine, claim)
    os.close(fd)
    assert (after.state, after.conditions) == (RunState.QUEUED, ())
    assert "perdure restore task" in after.reason and str(top) in after.reason
    (attempt,) = ground.engine.store.attempts(run.id)
    assert attempt.outcome is not None and attempt.outcome.kind is OutcomeKind.WRITER_CONFLICT
    assert 0 < after.run_after - ground.engine.store.now() <= 60_000


@pytest.mark.parametrize("again", range(5))
def test_a_pool_claims_the_run_while_it_is_restored(ground: Ground, again: int) -> None:
    """At whatever moment a pool claims the run, its restore is completed, or refused without a
    change. No attempt asks for a person."""
    run, top = queued(ground)
    assert run.workspace is not None
    engine, store = ground.engine, ground.engine.store
    over = threading.Event()
    claimed: list[TaskRun] = []

    def pool() -> None:
        assert run.workspace is not None
        while not over.is_set():
            try:
                os.close(engine.workspaces.lock(run.workspace, "a look"))
            except Conflict:
                claim = store.claim(engine.worker, 60)
                claimed.extend([perform(engine, claim)] if claim is not None else [])
                return

    beside = threading.Thread(target=pool)
    beside.start()
    try:
        restore(engine, "task", 1)
        done = True
    except Conflict:
        done = False
    over.set()
    beside.join()
    told = sum(
        isinstance(record.event, CheckpointRestored)
        for record in store.history(run.id, limit=10_000)
    )
    assert (told, (top / "work.txt").read_text()) == (
        (1, "at the checkpoint\n") if done else (0, "later\n")
    )
    assert all(not each.conditions for each in claimed)


def test_what_cannot_be_restored_is_refused_first(ground: Ground) -> None:
    """If the conversation is lost, nothing is changed: no new checkpoint, the same agent, the same
    files."""
    run, top = queued(ground)
    part = CopyPart("s-1", "main", 18, "ab")
    checkpoint(ground.engine, run, 2, agent="codex", session_id="s-1", conversation=(part,))
    with pytest.raises(WorkspaceError, match="is lost"):
        restore(ground.engine, "task", 2)
    assert [each.number for each in ground.engine.store.checkpoints(run.id)] == [1, 2]
    assert ground.engine.store.get(run.id).spec.agent == "claude"
    assert (top / "work.txt").read_text() == "later\n"


def test_a_restore_to_another_agent_is_undone_too(ground: Ground) -> None:
    """After a restore to a checkpoint of another agent the run belongs to that agent. The
    checkpoint made first belongs to the previous agent, and leads back to it."""
    run, top = queued(ground)
    checkpoint(ground.engine, run, 2, agent="codex")
    there = restore(ground.engine, "task", 1).undo
    assert there is not None
    over = restore(ground.engine, "task", 2)
    assert over.run.spec.agent == "codex" and over.undo is not None and over.undo.agent == "claude"
    assert restore(ground.engine, "task", over.undo.number).run.spec.agent == "claude"
    assert (top / "work.txt").read_text() == "at the checkpoint\n"
