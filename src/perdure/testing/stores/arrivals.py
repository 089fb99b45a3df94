"""Tests of runs that were moved here from another machine. They are stored completely, in a final
state, and then continue like any other run."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, PerdureError
from perdure.model import (
    Attempt,
    Condition,
    Context,
    Decision,
    Outcome,
    OutcomeKind,
    RunState,
    SessionKey,
    SessionState,
    TaskRun,
    TaskSpec,
)
from perdure.model.events import AttemptEnded, Record, RunTakenIn, Said
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.protocols import Arrival
from perdure.rules.requests import WAITING
from perdure.testing.stores.checkpoints import checkpoint
from perdure.testing.stores.samples import LEASE_S, Store, place, session_of, submit

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
