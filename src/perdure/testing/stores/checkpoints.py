"""Tests of checkpoints. Only the worker that holds the claim may add a checkpoint during an
attempt. Numbers are unique in a workspace, and each checkpoint can be removed separately."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, LostLease
from perdure.model import Checkpoint, CopyPart, Saved, SessionKey, SessionState, TaskRun, TaskSpec
from perdure.model.events import CheckpointRestored, CheckpointTaken
from perdure.testing.stores.samples import (
    AGAIN,
    LAPSED_S,
    LEASE_S,
    SUCCESS,
    Store,
    begun,
    claimed,
    numbers_of,
    session_of,
    submit,
)


def checkpoint(run: TaskRun, number: int = 1, attempt: int = 1) -> Checkpoint:
    """Return a checkpoint in which every field is set."""
    return Checkpoint(
        run=run.id,
        number=number,
        attempt=attempt,
        at=number,
        why="turn",
        workdir=Saved(
            commit="c0ffee",
            ref=f"refs/perdure/checkpoints/x/{number}",
            git_dir="/g",
            head="0a",
            changed=2,
            left_out=(("big", "ignored"),),
        ),
        session_id="s-1",
        conversation=(CopyPart("s-1", "main", 18, "ab"), CopyPart("s-1", "beside/x", 3, "cd")),
        context_version=1,
        agent=run.spec.agent,
        flags={"model": "small"},
    )


class CheckpointSuite:
    """Tests of `add_checkpoint`, `next_checkpoint`, `checkpoints`, `forget_checkpoints` and
    `restored`."""

    def test_a_checkpoint_is_kept_as_it_was_taken(self, store: Store) -> None:
        """Checkpoints are returned with all fields, oldest first. The journal has one record for
        each of them."""
        run, other = submit(store), submit(store)
        claim = claimed(store, run)
        store.add_checkpoint(checkpoint(run), claim)
        store.add_checkpoint(checkpoint(run, 2), claim)
        assert list(store.checkpoints(run.id)) == [checkpoint(run), checkpoint(run, 2)]
        assert list(store.checkpoints()) == list(store.checkpoints(run.id))
        assert store.checkpoints(other.id) == []
        told = []
        for record in store.history(run.id):
            if isinstance(record.event, CheckpointTaken):
                told.append(record)
        assert [record.attempt for record in told] == [1, 1]
        assert told[0].event == CheckpointTaken(
            number=1, why="turn", commit="c0ffee", changed=2, left_out=1
        )

    def test_only_the_worker_of_the_attempt_adds_one(self, store: Store) -> None:
        """A checkpoint is refused, and not stored, if its worker has lost the attempt or the
        attempt has ended."""
        run = submit(store)
        late = claimed(store, run, "ann", LAPSED_S)
        store.finish(store.adopt(late, "ben", LEASE_S), AGAIN)
        with pytest.raises(LostLease):
            store.add_checkpoint(checkpoint(run), late)
        ended = claimed(store, run)
        store.begin(ended, begun(run))
        store.finish(ended, SUCCESS)
        with pytest.raises(LostLease):
            store.add_checkpoint(checkpoint(run), ended)
        assert store.checkpoints(run.id) == []

    def test_without_a_claim_the_run_must_be_at_rest(self, store: Store) -> None:
        """Adding a checkpoint without a claim raises Conflict while an attempt is running. It is
        allowed before and after the attempt. An attempt that was claimed but has not begun does not
        count as running."""
        run = submit(store)
        store.add_checkpoint(checkpoint(run, attempt=0))
        claim = claimed(store, run)
        store.add_checkpoint(checkpoint(run, 2, attempt=0))
        store.begin(claim, begun(run))
        with pytest.raises(Conflict):
            store.add_checkpoint(checkpoint(run, 3))
        store.finish(claim, SUCCESS)
        store.add_checkpoint(checkpoint(run, 3))
        assert numbers_of(store.checkpoints(run.id)) == [1, 2, 3]

    def test_numbers_are_of_the_workspace(self, store: Store) -> None:
        """Runs that share a workdir never have checkpoints with the same number. Adding a
        checkpoint whose number is taken raises Conflict."""
        first, second = submit(store, where="shared"), submit(store, where="shared")
        assert store.next_checkpoint("shared", first.id) == 1
        store.add_checkpoint(checkpoint(first))
        assert store.next_checkpoint("shared", second.id) == 2
        assert store.next_checkpoint("another", second.id) == 1
        with pytest.raises(Conflict):
            store.add_checkpoint(checkpoint(second))
        store.add_checkpoint(checkpoint(second, 2))
        assert numbers_of(store.checkpoints(first.id)) == [1]

    def test_numbers_go_on_in_another_workspace(self, store: Store) -> None:
        """A run may move to a host where its workspace has another id. Its next checkpoint there
        has a higher number than its last one, so that the highest number is the newest."""
        run = submit(store, where="shared")
        store.add_checkpoint(checkpoint(run, 7))
        assert store.next_checkpoint("on another host", run.id) == 8

    def test_what_is_forgotten_is_gone(self, store: Store) -> None:
        """`forget_checkpoints` removes only the given checkpoints of the run. Removing them again
        is not an error. The journal keeps its records of them."""
        run = submit(store, where="shared")
        beside = submit(store, where="shared")
        for number in (1, 2, 3):
            store.add_checkpoint(checkpoint(run, number))
        store.add_checkpoint(checkpoint(beside, 4))
        for _ in range(2):
            store.forget_checkpoints(run.id, [1, 3, 4, 99])
        assert numbers_of(store.checkpoints(run.id)) == [2]
        assert numbers_of(store.checkpoints(beside.id)) == [4]
        assert (
            sum(isinstance(record.event, CheckpointTaken) for record in store.history(run.id)) == 3
        )

    def test_a_restore_stores_conversations_and_its_word_together(self, store: Store) -> None:
        """A restore retires the old session and makes the restored one live. While an attempt is
        running, the restore is refused and nothing is stored."""
        run = submit(store, TaskSpec(prompt="x", scope="talk"))
        old, new = session_of(run, "newer"), session_of(run, "older", SessionState.CONFIRMED)
        store.put_session(old)
        sessions = [replace(old, state=SessionState.RETIRED, cause="restored"), new]
        told = CheckpointRestored(number=1, attempt=1, attempts=1, undo=2)
        claim = claimed(store, run)
        store.begin(claim, begun(run))
        with pytest.raises(Conflict):
            store.restored(run.id, sessions, told)
        store.finish(claim, SUCCESS)
        store.restored(run.id, sessions, told)
        live = store.session(SessionKey(run.spec.agent, "talk"))
        assert live is not None and live.id == "older"
        assert store.history(run.id)[-1].event == told
