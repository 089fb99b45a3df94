"""Restores the workdir of a run that continues after its workdir was cleaned up or lost.

`opening_steps` calls `restore_if_missing` before each attempt. Forks and `perdure open` call
`reopen`, and a restore of a checkpoint calls `restore_from_trash`. The journal says whether a
clean-up removed the workdir. If so, it is moved back from the trash. If it is not in the trash any
more, it is rebuilt from the checkpoint that the clean-up took. A workdir that was lost with its
machine is rebuilt from the newest checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.engine.attempt.engine import HISTORY, EngineStore
from perdure.errors import NotFound
from perdure.model import SAFETY_REASONS, Backend, Checkpoint, TaskRun, Workspace
from perdure.model.events import (
    AttemptEnded,
    BroughtBack,
    CheckpointRestored,
    CheckpointTaken,
    CleanedUp,
    RunReset,
    RunResetUndone,
    WorkdirLost,
    WorkdirSwept,
)
from perdure.protocols import RunStore
from perdure.workspace import Workspaces
from perdure.workspace.locks import make_private, write

INCOMPLETE_MARKER = "half-back"
"""Name of a file in the run's directory. It exists while a restored workdir is incomplete: from the
creation of the workdir until its files are restored."""


def cleaned_up(store: RunStore, run: TaskRun) -> CleanedUp | WorkdirSwept | None:
    """Return the event of the clean-up that removed the workdir. None if there was no clean-up, or
    if the workdir was restored or reset after it."""
    ended = (CleanedUp, WorkdirSwept, BroughtBack, RunReset)
    told = [record.event for record in store.history(run.id, limit=HISTORY)]
    last = next((event for event in reversed(told) if isinstance(event, ended)), None)
    if isinstance(last, CleanedUp | WorkdirSwept):
        return last
    return None


def is_result_undone(store: RunStore, run: TaskRun) -> bool:
    """Return whether a person restored a checkpoint or reset the run after its newest attempt. If
    so, the workdir does not have the result of that attempt."""
    told = [record.event for record in store.history(run.id, limit=HISTORY)]
    turns = (AttemptEnded, CheckpointRestored, RunReset, RunResetUndone)
    last = next((event for event in reversed(told) if isinstance(event, turns)), None)
    if isinstance(last, CheckpointRestored):
        return not last.moved_from
    return isinstance(last, RunReset)


def restore_if_missing(
    store: EngineStore, workspaces: Workspaces, state: Path, run: TaskRun
) -> bool:
    """Restore the workdir if a clean-up removed it or it was lost. Return whether it was restored.
    The caller holds the workdir's lock.

    If perdure is killed meanwhile, the next call completes the restore. Raises WorkspaceError,
    GitFailed, and Conflict if a process uses the workdir.
    """
    place, mark = run.workspace, _mark(state, run)
    if place is None or (os.path.lexists(place.path) and not mark.exists()):
        return False
    gone = cleaned_up(store, run)
    if gone is not None and _taken_back(store, workspaces, state, run, place):
        return True
    lost = gone is None and _worked_here(store, run, place)
    checkpoint = None
    if gone is not None:
        checkpoint = _checkpoint(store, run, place, gone.checkpoint)
    elif lost:
        checkpoint = _newest(store, run, place)
    if checkpoint is None:
        mark.unlink(missing_ok=True)
        if lost:
            store.record_outside_attempt(run.id, [WorkdirLost(place=place.path)])
        return False
    make_private(mark.parent)
    write(mark, f"{checkpoint.number}\n")
    workspaces.prepare(place, run.spec.agent)
    try:
        workspaces.checkpoints.restore(place, checkpoint.workdir.commit)
    except NotFound:
        # Somebody deleted the checkpoint, so the workdir will be created from the run's branch.
        mark.unlink(missing_ok=True)
        if lost:
            store.record_outside_attempt(run.id, [WorkdirLost(place=place.path)])
        return False
    back: BroughtBack | WorkdirLost = BroughtBack(place=place.path, checkpoint=checkpoint.number)
    if lost:
        back = WorkdirLost(place=place.path, checkpoint=checkpoint.number, taken=checkpoint.at)
    store.record_outside_attempt(run.id, [back])
    mark.unlink(missing_ok=True)
    return True


def reopen(
    store: EngineStore, workspaces: Workspaces, state: Path, run: TaskRun, holder: str
) -> None:
    """Call `restore_if_missing` under the workdir's lock, for a command that needs the workdir and
    starts no attempt. `holder`: name of that command. Raises InUse and the errors of
    `restore_if_missing`."""
    if run.workspace is None or os.path.lexists(run.workspace.path):
        return
    fd = workspaces.lock(run.workspace, holder)
    try:
        restore_if_missing(store, workspaces, state, run)
    finally:
        os.close(fd)


def restore_from_trash(
    store: EngineStore, workspaces: Workspaces, state: Path, run: TaskRun
) -> bool:
    """Move the workdir back from the trash if a clean-up moved it there. Return whether it was
    moved back. No checkpoint is used. The caller holds the workdir's lock. Raises WorkspaceError.
    """
    place = run.workspace
    if place is None or os.path.lexists(place.path) or cleaned_up(store, run) is None:
        return False
    return _taken_back(store, workspaces, state, run, place)


def _taken_back(
    store: EngineStore, workspaces: Workspaces, state: Path, run: TaskRun, place: Workspace
) -> bool:
    if not workspaces.restore_from_trash(place, run.id):
        return False
    store.record_outside_attempt(run.id, [BroughtBack(place=place.path)])
    _mark(state, run).unlink(missing_ok=True)
    return True


def _checkpoint(store: RunStore, run: TaskRun, place: Workspace, number: int) -> Checkpoint | None:
    """Return the checkpoint of this workdir with this number, even if another run in the workdir
    took it. None if there is no such checkpoint."""
    own = [each for each in store.checkpoints(run.id) if each.number == number]
    found = own or [each for each in store.checkpoints() if each.number == number]
    return next(
        (each for each in found if each.workdir.ref.rpartition("/")[0].endswith(f"/{place.id}")),
        None,
    )


def _worked_here(store: RunStore, run: TaskRun, place: Workspace) -> bool:
    """Return whether an attempt of the run used the workdir since the last reset. False for a
    workdir that is the user's own checkout."""
    if place.backend is Backend.HERE:
        return False
    reset = 0
    for record in store.history(run.id, limit=HISTORY):
        if isinstance(record.event, RunReset):
            reset = record.at
    begun = [each for each in store.attempts(run.id) if each.continuation is not None]
    return any(each.started >= reset for each in begun)


def _newest(store: RunStore, run: TaskRun, place: Workspace) -> Checkpoint | None:
    """Return the run's newest checkpoint of this workdir, or the checkpoint that was restored
    later. None if there is no such checkpoint."""
    mine = [
        each
        for each in store.checkpoints(run.id)
        if each.workdir.ref.rpartition("/")[0].endswith(f"/{place.id}")
    ]
    for record in reversed(store.latest(run.id, HISTORY)):
        match record.event:
            case CheckpointRestored(number=number):
                return next((each for each in mine if each.number == number), None)
            case CheckpointTaken():
                break
            case _:
                pass
    taken = [each for each in mine if each.why not in SAFETY_REASONS]
    return max(taken, key=lambda each: each.number, default=None)


def _mark(state: Path, run: TaskRun) -> Path:
    return state / "runs" / run.id / INCOMPLETE_MARKER
