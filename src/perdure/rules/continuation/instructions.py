"""Determines which versions of a run's instructions are in effect. Pure.

A restore to an earlier checkpoint retires the versions that came after that checkpoint. A restore
to a later checkpoint puts them in effect again. `checkpoints` asks which versions a restore
changes; `attempt` and `report` ask which versions are in effect now. The first version, the task
itself, is always in effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perdure.model import Checkpoint, Context
from perdure.model.events import CheckpointRestored, CheckpointTaken, ContextAdded, Record


def retired(records: Iterable[Record]) -> frozenset[int]:
    """Return the numbers of the versions that are no longer in effect, according to the run's
    journal."""
    found = frozenset[int]()
    for record in records:
        if isinstance(record.event, CheckpointRestored) and _takes_back(record.event):
            found = frozenset(record.event.retired)
    return found


def counting(contexts: Iterable[Context], records: Iterable[Record]) -> list[Context]:
    """Return the versions of the instructions that are in effect, oldest first."""
    gone = retired(records)
    return [context for context in contexts if context.version not in gone]


def retired_by(
    contexts: Sequence[Context], records: Sequence[Record], checkpoint: Checkpoint, *, asked: bool
) -> frozenset[int]:
    """Return the numbers of the versions that are not in effect after a restore to this checkpoint.

    `asked`: whether a person chose the checkpoint. If not, perdure restores the newest checkpoint
    to repair a run, and every version that is in effect now stays in effect.
    """
    later = {context.version for context in contexts if context.version > 1}
    absent = later - _counted_at(contexts, records, checkpoint)
    return frozenset(absent if asked else absent & retired(records))


def _counted_at(
    contexts: Sequence[Context], records: Sequence[Record], checkpoint: Checkpoint
) -> set[int]:
    """Return the numbers of the versions that were in effect when the checkpoint was taken."""
    given, gone = set[int](), frozenset[int]()
    for record in records:
        match record.event:
            case ContextAdded(version=version):
                given.add(version)
            case CheckpointRestored() if _takes_back(record.event):
                gone = frozenset(record.event.retired)
            case CheckpointTaken(number=number) if number == checkpoint.number:
                return given - gone
            case _:
                pass
    # A journal from another machine may have no record of the checkpoint. Then only the times can
    # show which versions came before the checkpoint.
    return {context.version for context in contexts if context.at <= checkpoint.at} - gone


def _takes_back(event: CheckpointRestored) -> bool:
    """Return whether a person restored the conversation to a checkpoint. A restore of files alone,
    or on another host, does not change the instructions."""
    return not (event.files_only or event.moved_from)
