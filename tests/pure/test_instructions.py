"""Which versions of the instructions are in effect after restores to earlier and later
checkpoints."""

from __future__ import annotations

from perdure.model import Checkpoint, Context, Saved
from perdure.model.events import AnyEvent, CheckpointRestored, CheckpointTaken, ContextAdded, Record
from perdure.rules.continuation.instructions import counting, retired, retired_by


def journal(*events: AnyEvent) -> list[Record]:
    return [
        Record(run="r", seq=number, attempt=0, at=number, event=event)
        for number, event in enumerate(events, 1)
    ]


def taken(number: int) -> CheckpointTaken:
    return CheckpointTaken(number=number, why="end", commit="c")


def checkpoint(number: int, at: int = 0) -> Checkpoint:
    return Checkpoint(
        run="r",
        number=number,
        attempt=1,
        at=at,
        why="end",
        workdir=Saved(commit="c", ref="x", git_dir=""),
    )


def contexts(count: int) -> list[Context]:
    return [Context(version, f"text {version}", version) for version in range(1, count + 1)]


def restored(
    number: int, *versions: int, files_only: bool = False, moved_from: str = ""
) -> CheckpointRestored:
    return CheckpointRestored(
        number=number,
        attempt=1,
        attempts=1,
        retired=versions,
        files_only=files_only,
        moved_from=moved_from,
    )


def test_what_came_after_the_checkpoint_is_retired() -> None:
    """After a restore, instructions that were given after the checkpoint are retired. Earlier ones
    stay in effect, whether the agent had read them or not."""
    records = journal(ContextAdded(version=2), taken(1), ContextAdded(version=3), taken(2))
    assert retired_by(contexts(3), records, checkpoint(1), asked=True) == {3}
    assert retired_by(contexts(3), records, checkpoint(2), asked=True) == set()


def test_a_later_checkpoint_brings_it_back() -> None:
    """After a restore to a later checkpoint, the instructions of that checkpoint are in effect
    again. Those that were already retired then, or that came later, are not."""
    records = journal(
        taken(1),
        ContextAdded(version=2),
        taken(2),
        restored(1, 2),
        ContextAdded(version=3),
        taken(3),
    )
    assert retired(records) == {2}
    assert [each.version for each in counting(contexts(3), records)] == [1, 3]
    assert retired_by(contexts(3), records, checkpoint(2), asked=True) == {3}
    assert retired_by(contexts(3), records, checkpoint(3), asked=True) == {2}
    assert retired_by(contexts(3), records, checkpoint(1), asked=True) == {2, 3}


def test_a_repair_retires_nothing() -> None:
    """If perdure itself restores the newest checkpoint, no waiting instructions are retired. Those
    that were in effect at that checkpoint are in effect again."""
    records = journal(taken(1), ContextAdded(version=2), taken(2), ContextAdded(version=3))
    assert retired_by(contexts(3), records, checkpoint(2), asked=False) == set()
    back = [*records, *journal(restored(1, 2, 3))]
    assert retired_by(contexts(3), back, checkpoint(2), asked=False) == {3}


def test_files_alone_and_another_host_change_nothing() -> None:
    """The instructions of a run stay in effect if only its files were restored, or if it continued
    on another host."""
    records = journal(
        taken(1),
        ContextAdded(version=2),
        restored(1, 2),
        restored(1, files_only=True),
        restored(1, moved_from="anna"),
    )
    assert retired(records) == {2}


def test_a_journal_without_the_checkpoint_goes_by_time() -> None:
    """If the journal came from another machine and lacks the checkpoint, the times of instructions
    and checkpoint decide."""
    assert retired_by(contexts(3), [], checkpoint(9, at=2), asked=True) == {3}
