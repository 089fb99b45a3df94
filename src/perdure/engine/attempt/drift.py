"""Detects how the workdir differs from the state in which the agent last left it: files that
somebody else changed between two attempts, or that a person restored.

Called when an attempt starts. The files are compared with the newest checkpoint, or with the one
that a person restored since. The differences are listed in the agent's prompt, because the agent
assumes that the files are as it remembers them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import suppress

from msgspec import Struct

from perdure.errors import PerdureError
from perdure.model import SAFETY_REASONS, Checkpoint, Continuation, Rung, TaskRun
from perdure.model.events import (
    AttemptStarted,
    CheckpointRestored,
    CheckpointTaken,
    DriftSeen,
    Record,
)
from perdure.protocols import RunStore
from perdure.workspace import Workspaces

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
    the run's newest checkpoint or, if another checkpoint was restored later, with that one. If the
    conversation continues from an older checkpoint, the files are compared with the older one."""
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
