"""Checkpoints of one attempt, taken beside the work: how many are kept, and the effect of one that
cannot be taken."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure.engine.attempt.checkpoints import KEPT, Checkpointing, prune
from perdure.errors import LostLease
from perdure.host.process import worker_identity
from perdure.model import Backend
from perdure.model.events import CheckpointMissed, CheckpointTaken
from tests.checkpoints.test_checkpoint_kills import Bench
from tests.workspace.test_photograph import made
from tests.workspace.yard import make_yard


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    yard = make_yard(tmp_path)
    workspace, _ = made(yard, Backend.WORKTREE)
    return Bench(tmp_path, workspace, yard.environ)


def until_idle(checkpoints: Checkpointing) -> None:
    while checkpoints._taking is not None or checkpoints._wanted:
        checkpoints.tick()
        time.sleep(0.01)


def test_the_newest_are_kept_and_their_refs(bench: Bench) -> None:
    """After many checkpoints of one attempt ten are left, and git has exactly their refs."""
    opened = bench.opened()
    bench.transcript.write_text("prompt 1\n")
    for number in range(1, KEPT + 4):
        (Path(bench.workspace.path) / "count.txt").write_text(str(number))
        bench.engine.store.add_checkpoint(
            Checkpointing(bench.engine, opened).take("tool", number), opened.claim
        )
    prune(bench.engine.store, bench.engine.workspaces, opened.claim.run)
    left = [row.number for row in bench.engine.store.checkpoints("r1")]
    assert left == list(range(4, KEPT + 4))
    assert sorted(bench.engine.workspaces.checkpoints.list_saved(bench.workspace)) == left
    bench.engine.store.close()


def test_what_a_restore_took_away_is_kept(bench: Bench) -> None:
    """The checkpoint that a restore made first is never removed, however many checkpoints follow.
    The last one of the attempt before the restore is kept as well."""
    opened = bench.opened()
    bench.transcript.write_text("prompt 1\n")
    for number, why in enumerate(("end", "restore"), 1):
        bench.engine.store.add_checkpoint(
            Checkpointing(bench.engine, opened).take(why, number), opened.claim
        )
    for number in range(3, KEPT + 5):
        later = replace(Checkpointing(bench.engine, opened).take("tool", number), attempt=2)
        bench.engine.store.add_checkpoint(later, opened.claim)
    prune(bench.engine.store, bench.engine.workspaces, opened.claim.run)
    assert [row.number for row in bench.engine.store.checkpoints("r1")] == [
        1,
        2,
        *range(5, KEPT + 5),
    ]
    bench.engine.store.close()


def test_watching_goes_on_while_one_is_taken(bench: Bench) -> None:
    """A checkpoint is taken in the background and published later. One that is requested meanwhile
    is taken next, and the last one at the end."""
    opened = bench.opened()
    bench.transcript.write_text("prompt 1\n")
    checkpoints = Checkpointing(bench.engine, opened)
    checkpoints.want("tool")
    checkpoints.tick()
    assert bench.engine.store.checkpoints("r1") == []
    checkpoints.want("turn")
    until_idle(checkpoints)
    checkpoints.end("end")
    assert [row.why for row in bench.engine.store.checkpoints("r1")] == ["tool", "turn", "end"]
    assert (
        sum(
            isinstance(record.event, CheckpointTaken) for record in bench.engine.store.history("r1")
        )
        == 3
    )
    bench.engine.store.close()


def test_a_result_just_before_a_checkpoint_is_in_the_next_one(bench: Bench) -> None:
    """A tool ends when a checkpoint is about to begin, and its result reaches the transcript after
    that. Another checkpoint has the result, although nothing more happens."""
    opened = bench.opened()
    bench.transcript.write_text("prompt 1\n")
    checkpoints = Checkpointing(replace(bench.engine, checkpoint_every_s=0.05), opened)
    checkpoints.want("tool")
    checkpoints.tool_ended()
    checkpoints.tick()
    assert checkpoints._taking is not None
    checkpoints._taking.result()
    bench.transcript.write_text("prompt 1\nthe result\n")
    until_idle(checkpoints)
    assert [row.why for row in bench.engine.store.checkpoints("r1")] == ["tool", "tool"]
    (copy,) = bench.engine.copies.directory.rglob("main")
    assert b"the result" in copy.read_bytes()
    checkpoints.end("end")
    bench.engine.store.close()


def test_one_that_cannot_be_taken_is_told(bench: Bench) -> None:
    """Without its workdir there is no checkpoint: no row, one event with the reason, and no error."""
    opened = bench.opened()
    bench.transcript.write_text("prompt 1\n")
    shutil.rmtree(bench.workspace.path)
    checkpoints = Checkpointing(bench.engine, opened)
    checkpoints.end("end")
    assert bench.engine.store.checkpoints("r1") == []
    (missed,) = [
        record.event
        for record in bench.engine.store.history("r1")
        if isinstance(record.event, CheckpointMissed)
    ]
    assert missed.why == "end" and bench.workspace.path in missed.reason
    bench.engine.store.close()


def test_a_late_supervisor_publishes_nothing(bench: Bench) -> None:
    """A supervisor whose attempt was taken over notices it at its next checkpoint, and adds no row."""
    opened = bench.opened()
    bench.transcript.write_text("prompt 1\n")
    checkpoints = Checkpointing(bench.engine, opened)
    bench.engine.store.adopt(opened.claim, f"{worker_identity()}-another", 60)
    with pytest.raises(LostLease):
        checkpoints.end("end")
    assert bench.engine.store.checkpoints("r1") == []
    bench.engine.store.close()
