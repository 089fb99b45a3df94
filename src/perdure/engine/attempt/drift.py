"""What somebody else did to the workdir while the agent was away, and what a restore took away from
under it.

Called when an attempt opens. The files are held against the checkpoint that says how the agent last
left them, or that a person restored since. The agent is told, because it goes on from what it
remembers.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import suppress

from perdure.engine.attempt.engine import Engine
from perdure.errors import PerdureError
from perdure.lateclass import dataclass
from perdure.model import KEEPSAKES, Checkpoint, Continuation, Rung, TaskRun
from perdure.model.events import (
    AttemptStarted,
    CheckpointRestored,
    CheckpointTaken,
    DriftSeen,
    Record,
)

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Ground:
    """What an attempt begins on: the checkpoint to compare with, and the restore since the attempt
    before, if there was one."""

    checkpoint: Checkpoint | None = None
    restored: CheckpointRestored | None = None
    back: bool = False
    """Only the conversation is taken back to the checkpoint."""
    by_itself: bool = False
    """The agent may have gone on after the checkpoint: not everything that differs is somebody
    else's."""


NO_GROUND = Ground()


def ground_of(
    engine: Engine, run: TaskRun, asked: Continuation, records: Sequence[Record]
) -> Ground:
    """The newest checkpoint of the run's work, unless one was restored since, or the conversation
    is taken back to an older one."""
    by_number = {checkpoint.number: checkpoint for checkpoint in engine.store.checkpoints(run.id)}
    number, restored = 0, None
    for record in records:
        match record.event:
            case CheckpointTaken(number=taken, why=why) if why not in KEEPSAKES:
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
    return Ground(checkpoint, restored, back, by_itself)


def drift(
    engine: Engine, run: TaskRun, ground: Ground, placed: Container[str] = ()
) -> DriftSeen | None:
    """What differs from the checkpoint; None if nothing does, or if that cannot be told. `placed`:
    names that perdure wrote."""
    if ground.checkpoint is None or run.workspace is None:
        return None
    saved = ground.checkpoint.workdir
    with suppress(PerdureError):
        differing = engine.workspaces.checkpoints.drift(
            run.workspace, saved.commit, ignored=engine.checkpoint_ignored
        )
        names = [name for name in differing if name not in placed]
        head = engine.workspaces.head(run.workspace)
        moved = bool(saved.head or head) and saved.head != head
        if names or moved:
            return DriftSeen(
                number=ground.checkpoint.number,
                paths=tuple(names[:SHOWN]),
                count=len(names),
                head_before=saved.head if moved else "",
                head_now=head if moved else "",
            )
    return None


def standing(records: Sequence[Record]) -> list[Record]:
    """The journal without what a restore took back: the attempts after the one whose checkpoint was
    restored."""
    left: list[Record] = []
    for record in records:
        if isinstance(record.event, CheckpointRestored) and not record.event.files_only:
            last = record.event.attempt
            left = [each for each in left if each.attempt <= last]
        left.append(record)
    return left
