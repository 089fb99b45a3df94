"""Restores the workdir of a run that continues after its workdir was cleaned up or lost, and
detects changes that the agent does not know of.

`opening_steps` calls `restore_if_missing` before each attempt. Forks and `perdure open` call
`reopen`, and a restore of a checkpoint calls `restore_from_trash`. The journal says whether a
clean-up removed the workdir. A removed workdir is moved back from the trash. If it is not in the
trash any more, it is rebuilt from the checkpoint that the clean-up took. A workdir that was lost
with its machine is rebuilt from the newest checkpoint.

When an attempt starts, `drift` compares the files with the newest checkpoint, or with the one that
a person restored since. The differences are files that somebody else changed between two attempts.
They are listed in the agent's prompt, because the agent assumes that the files are as it remembers
them.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from perdure.engine.attempt.engine import EngineStore
from perdure.errors import NotFound, PerdureError
from perdure.model import (
    SAFETY_REASONS,
    Backend,
    Checkpoint,
    Continuation,
    Rung,
    TaskRun,
    Workspace,
)
from perdure.model.events import (
    AttemptEnded,
    AttemptStarted,
    BroughtBack,
    CheckpointRestored,
    CheckpointTaken,
    CleanedUp,
    DriftSeen,
    Record,
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
    told = [record.event for record in store.run_events(run.id)]
    last = next((event for event in reversed(told) if isinstance(event, ended)), None)
    if isinstance(last, CleanedUp | WorkdirSwept):
        return last
    return None


def is_result_undone(store: RunStore, run: TaskRun) -> bool:
    """Return whether a person restored a checkpoint or reset the run after its newest attempt. If
    so, the workdir does not have the result of that attempt. A restore that was part of a move from
    another machine does not count."""
    told = [record.event for record in store.run_events(run.id)]
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
        # Somebody deleted the checkpoint, so the workdir has only the files of the run's branch,
        # from which `prepare` has just created it.
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
    for each in found:
        if _is_of(each, place):
            return each
    return None


def _is_of(checkpoint: Checkpoint, place: Workspace) -> bool:
    return checkpoint.workdir.ref.rpartition("/")[0].endswith(f"/{place.id}")


def _worked_here(store: RunStore, run: TaskRun, place: Workspace) -> bool:
    """Return whether an attempt of the run used the workdir since the last reset. False for a
    workdir that is the user's own checkout."""
    if place.backend is Backend.HERE:
        return False
    reset = 0
    for record in store.run_events(run.id):
        if isinstance(record.event, RunReset):
            reset = record.at
    for attempt in store.attempts(run.id):
        if attempt.continuation is not None and attempt.started >= reset:
            return True
    return False


def _newest(store: RunStore, run: TaskRun, place: Workspace) -> Checkpoint | None:
    """Return the run's newest checkpoint of this workdir, or the checkpoint that was restored
    later. None if there is no such checkpoint."""
    mine = [each for each in store.checkpoints(run.id) if _is_of(each, place)]
    for record in reversed(store.run_events(run.id)):
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


SHOWN = 20


class StartingState(Struct, frozen=True):
    """State of the workdir at the start of an attempt. `checkpoint`: the checkpoint with which the
    files are compared. `restored`: the restore since the previous attempt, if there was one."""

    checkpoint: Checkpoint | None = None
    restored: CheckpointRestored | None = None
    back: bool = False
    """Whether the conversation continues from an older checkpoint although the files keep their
    present state."""
    by_itself: bool = False
    """Whether the agent may have changed files after the checkpoint was taken. If so, some of the
    differences may be the agent's own changes."""


NO_STARTING_STATE = StartingState()


def starting_state(
    store: RunStore, run: TaskRun, asked: Continuation, records: Sequence[Record]
) -> StartingState:
    """Return the state of the workdir at the start of the attempt. The files will be compared with
    the run's newest checkpoint or, if another checkpoint was restored later, with the restored
    checkpoint. If the conversation continues from an older checkpoint, the files are compared with
    the older one."""
    by_number = {checkpoint.number: checkpoint for checkpoint in store.checkpoints(run.id)}
    number, restored = 0, None
    for record in records:
        match record.event:
            case CheckpointTaken(number=taken, why=why) if why not in SAFETY_REASONS:
                number = taken
            case CheckpointRestored() as event:
                number, restored = event.number, event
            case AttemptStarted():
                restored = None
            case _:
                pass
    checkpoint = by_number.get(asked.checkpoint if asked.rung is Rung.CHECKPOINT else number)
    back = asked.rung is Rung.CHECKPOINT
    by_itself = back or (checkpoint is not None and restored is None and checkpoint.why != "end")
    return StartingState(checkpoint, restored, back, by_itself)


def drift(
    workspaces: Workspaces,
    run: TaskRun,
    starting: StartingState,
    placed: Container[str] = (),
) -> DriftSeen | None:
    """Return how the workdir differs from the checkpoint. Return None if there are no differences,
    or if they cannot be determined. `placed`: names of files that perdure wrote itself, which are
    ignored."""
    if starting.checkpoint is None or run.workspace is None:
        return None
    saved = starting.checkpoint.workdir
    with suppress(PerdureError):
        differing = workspaces.checkpoints.drift(run.workspace, saved.commit)
        names = [name for name in differing if name not in placed]
        head = workspaces.head(run.workspace)
        moved = bool(saved.head or head) and saved.head != head
        if names or moved:
            return DriftSeen(
                number=starting.checkpoint.number,
                paths=tuple(names[:SHOWN]),
                count=len(names),
                head_before=saved.head if moved else "",
                head_now=head if moved else "",
            )
    return None


def without_undone(records: Sequence[Record]) -> list[Record]:
    """Return the journal without the records of the attempts that a restore undid. These are the
    attempts after the one whose checkpoint was restored."""
    left: list[Record] = []
    for record in records:
        if isinstance(record.event, CheckpointRestored) and not record.event.files_only:
            last = record.event.attempt
            left = [each for each in left if each.attempt <= last]
        left.append(record)
    return left
