"""Tests of checkpoints, and of runs that were moved here from another machine.

During an attempt, only the worker that holds the claim may add a checkpoint. Numbers are unique in
a workspace, and each checkpoint can be removed separately. A run that was moved here is stored
completely, in a final state, and then continues like any other run.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, LostLease, PerdureError
from perdure.model import (
    Attempt,
    Checkpoint,
    Condition,
    Context,
    CopyPart,
    Decision,
    Outcome,
    OutcomeKind,
    RunState,
    Saved,
    SessionKey,
    SessionState,
    TaskRun,
    TaskSpec,
)
from perdure.model.events import (
    AttemptEnded,
    CheckpointRestored,
    CheckpointTaken,
    Record,
    RunTakenIn,
    Said,
)
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.protocols import Arrival
from perdure.rules.requests import WAITING
from perdure.testing.stores.samples import (
    AGAIN,
    LAPSED_S,
    LEASE_S,
    SUCCESS,
    Store,
    begun,
    claimed,
    numbers_of,
    place,
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


LOST = Outcome(kind=OutcomeKind.LOST)


def arrival(number: int = 1, state: RunState = RunState.CANCELLED) -> Arrival:
    """Return an arriving run with two attempts, two versions of its instructions, a conversation
    and a few records."""
    run = TaskRun(
        id=f"{number:032x}",
        name=f"moved-{number}",
        spec=TaskSpec(prompt="do it"),
        state=state,
        created=5,
        updated=6,
        context_version=2,
        attempt=2,
        attempts_allowed=3,
        reason="brought here",
        workspace=place(f"moved-{number}"),
        origin="f" * 32,
    )
    attempts = []
    for n in (1, 2):
        attempts.append(
            Attempt(
                run=run.id,
                number=n,
                context_version=n,
                worker="w",
                started=n,
                ended=n + 1,
                outcome=LOST,
            )
        )
    said = [
        Record("", 0, 1, 7, Said("hello")),
        *(Record("", 0, n, 8, AttemptEnded(outcome=LOST)) for n in (1, 2)),
    ]
    return Arrival(
        run=run,
        contexts=(Context(1, "do it", 5), Context(2, "more", 6)),
        attempts=tuple(attempts),
        sessions=(session_of(run, "s-1", SessionState.CONFIRMED),),
        records=tuple(said),
        checkpoint=checkpoint(run, attempt=2),
        event=RunTakenIn(origin=run.origin, number=4, source="a capsule"),
    )


class Arriving:
    """Tests of `take_in`."""

    def test_a_run_from_another_machine_is_stored_whole(self, store: Store) -> None:
        """The run's attempts, instructions, conversation, checkpoint and journal are stored with
        their original times."""
        given = arrival()
        run = store.take_in(given)
        assert store.get(run.name) == run
        assert (run.id, run.origin, run.state, run.attempt, run.context_version) == (
            given.run.id,
            "f" * 32,
            RunState.CANCELLED,
            2,
            2,
        )
        assert tuple(store.attempts(run.id)) == given.attempts
        assert tuple(store.contexts(run.id)) == given.contexts
        assert tuple(store.lineage(SessionKey("claude", run.scope))) == given.sessions
        assert list(store.checkpoints(run.id)) == [given.checkpoint]
        told = store.history(run.id)
        for stored, sent in zip(told[:3], given.records, strict=True):
            assert (stored.attempt, stored.at, stored.event) == (sent.attempt, sent.at, sent.event)
        assert told[3].event == given.event

    def test_nothing_claims_it_before_a_person_asks(self, store: Store) -> None:
        """A run is not due when it arrives. It becomes due when a person retries it. The next
        attempt's number follows the last number from the other machine."""
        run = store.take_in(arrival())
        assert store.claim("ann", LEASE_S) is None
        store.requeue(run.id, "asked for")
        claim = store.claim("ann", LEASE_S)
        assert claim is not None and (claim.run.id, claim.attempt) == (run.id, 3)

    def test_one_that_waits_for_a_person_goes_on_after_the_answer(self, store: Store) -> None:
        """The open requests of an arriving run are stored with it. The run is not claimed before
        the last one is answered."""
        given = arrival()
        asked = AgentRequest(
            run=given.run.id,
            number=1,
            attempt=2,
            kind=RequestKind.APPROVAL,
            tool="Write",
            call="call-1",
            summary="a.txt",
            payload="{}",
            size=2,
            sha256="0" * 64,
            parked=True,
            asked=1,
            expires=store.now() + 10**9,
        )
        condition = Condition(type=WAITING, message="it waits", at=1)
        waits = Decision(
            state=RunState.QUEUED, run_after=asked.expires, reason="it asks", condition=condition
        )
        run = store.take_in(replace(given, requests=(asked,), waits=waits))
        assert (run.state, run.conditions) == (RunState.QUEUED, (condition,))
        assert tuple(store.requests(run.id)) == (asked,)
        assert store.claim("ann", LEASE_S) is None
        store.answer(run.id, 1, AnswerKind.DENY, "no")
        claim = store.claim("ann", LEASE_S)
        assert claim is not None and (claim.run.id, claim.attempt) == (run.id, 3)

    def test_a_name_or_an_id_that_is_taken_is_refused_whole(self, store: Store) -> None:
        """If the name or id of an arriving run is taken, Conflict is raised. A run that is neither
        final nor waiting for a person is refused as well. In both cases nothing is stored."""
        there = submit(store)
        given = arrival()
        for clash in (replace(given.run, name=there.name), replace(given.run, id=there.id)):
            with pytest.raises(Conflict):
                store.take_in(replace(given, run=clash))
        for state in (RunState.PENDING, RunState.QUEUED, RunState.RUNNING):
            with pytest.raises(PerdureError):
                store.take_in(arrival(2, state))
        assert len(store.find()) == 1 and store.checkpoints() == []
