"""Tests of the counts. Also tests that a caller that reads ended attempts page by page gets each of
them."""

from __future__ import annotations

from msgspec.structs import replace

from perdure.model import Condition, OutcomeKind, RunState, SessionState, TaskSpec
from perdure.model.events import CollisionSeen, Said, VerifyEnded
from perdure.testing.stores.inbox import DULL, arrived
from perdure.testing.stores.samples import (
    FAILURE,
    LAPSED_S,
    SUCCESS,
    Store,
    begun,
    claimed,
    ending,
    events_of,
    session_of,
    submit,
)

ASKS = Condition(type="needs_person", message='it asks: "what now?"', at=1)
NEEDS_PERSON = ending(OutcomeKind.NEEDS_INPUT, RunState.FAILED, condition=ASKS)


class CountSuite:
    """Tests of `counts`, `ended_after` and `attempt_records`."""

    def test_an_empty_store_counts_nothing(self, store: Store) -> None:
        """All counts of an empty store are zero, and there is no oldest due run or delivery."""
        found = store.counts()
        assert (
            found.runs,
            found.due,
            found.due_since,
            list(found.at_work),
            found.opened,
            found.parked,
        ) == ({}, 0, None, [], 0, 0)
        assert (
            found.need_person,
            found.sessions,
            found.checkpoints,
            found.deliveries,
            found.trouble,
        ) == ({}, {}, 0, {}, {})
        assert found.delivery_since is None and found.at > 0
        assert store.ended_after(0, "", 0) == []

    def test_runs_are_counted_by_agent_and_state(self, store: Store) -> None:
        """Each run is counted once. Removed runs are not counted."""
        for _ in range(2):
            submit(store, TaskSpec(prompt="do it", agent="codex"))
        done = submit(store)
        store.finish(claimed(store, done), SUCCESS)
        gone = submit(store)
        store.finish(claimed(store, gone), FAILURE)
        store.remove(gone.id)
        assert store.counts().runs == {
            ("codex", RunState.QUEUED): 2,
            ("claude", RunState.SUCCEEDED): 1,
        }

    def test_who_waits_and_who_is_at_work(self, store: Store) -> None:
        """The counts contain the number of due runs and the time at which the oldest of them became
        due. They also contain the number of running runs, and how many of those have an expired
        lease."""
        waits = submit(store)
        later = submit(store)
        store.defer(later.id, store.now() + 3_600_000, "later")
        store.begin(claim := claimed(store, submit(store)), begun(claim.run))
        claimed(store, submit(store), lease_s=LAPSED_S)
        found = store.counts()
        assert (found.due, found.due_since) == (1, waits.run_after)
        (at_work,) = found.at_work
        assert (at_work.agent, at_work.runs, at_work.lapsed) == (
            "claude",
            2,
            1,
        ) and 0 < at_work.lease_until <= found.at

    def test_who_needs_a_person(self, store: Store) -> None:
        """A run is counted as long as it has the condition `needs_person`. A condition of another
        type is not counted, even if its message contains the word `needs_person`."""
        asking, other = submit(store), submit(store)
        store.finish(claimed(store, asking), NEEDS_PERSON)
        lure = Condition(type="drift", message='[{"type":"needs_person"}]', at=2)
        store.finish(
            claimed(store, other), ending(OutcomeKind.FAILED, RunState.FAILED, condition=lure)
        )
        assert store.counts().need_person == {"claude": 1}
        store.requeue(asking.id, "go on")
        assert store.counts().need_person == {}

    def test_sessions_deliveries_and_trouble(self, store: Store) -> None:
        """Conversations are counted by agent and state, and deliveries by source and state. Events
        about problems are counted by agent and kind."""
        run = submit(store)
        claim = claimed(store, run)
        store.begin(claim, begun(run, session_of(run, "one")))
        store.record(
            claim, [CollisionSeen(session_id="one", detail="somebody"), Said(text="collision_seen")]
        )
        store.put_session(replace(session_of(run, "old"), state=SessionState.RETIRED))
        store.accept([arrived(), arrived(), arrived(source="infra", reading=DULL)])
        found = store.counts()
        assert found.sessions == {
            ("claude", SessionState.PINNED): 1,
            ("claude", SessionState.RETIRED): 1,
        }
        assert found.deliveries == {("shop", "received"): 2, ("infra", "ignored"): 1}
        assert found.delivery_since is not None and found.delivery_since <= found.at
        assert found.trouble == {("claude", "collision_seen"): 1}

    def test_ended_attempts_come_page_by_page(self, store: Store) -> None:
        """With any page size, each ended attempt is returned once and in order. Running attempts
        are not returned."""
        ended = []
        for _ in range(5):
            run = submit(store)
            store.finish(claimed(store, run), SUCCESS)
            ended.append(run.id)
        claimed(store, submit(store))
        for size in (1, 2, 100):
            after, seen = (0, "", 0), list[str]()
            while page := store.ended_after(*after, limit=size):
                assert len(page) <= size
                seen += [attempt.run for _, attempt in page]
                last = page[-1][1]
                after = (last.ended or 0, last.run, last.number)
            assert sorted(seen) == sorted(ended)
        key, attempt = store.ended_after(0, "", 0)[0]
        assert (key.agent, attempt.outcome) == ("claude", SUCCESS.outcome)

    def test_the_newest_records(self, store: Store) -> None:
        """`latest` returns the newest records of a run, as many as requested. The oldest of them
        comes first."""
        run, other = submit(store), submit(store)
        claim = claimed(store, run)
        store.record(claim, [Said(text=f"{number}") for number in range(5)])
        claimed(store, other)
        assert events_of(store.latest(run.id, 2)) == [
            Said(text="3"),
            Said(text="4"),
        ]
        assert store.latest(run.id) == store.history(run.id)
        assert (
            store.latest(run.id, 2, store.history(run.id)[-1].seq) == store.history(run.id)[-3:-1]
        )

    def test_the_marks_of_an_attempt(self, store: Store) -> None:
        """`attempt_records` returns perdure's own events of one attempt in order. It returns
        neither the agent's messages nor events of other attempts."""
        run = submit(store)
        claim = claimed(store, run)
        store.begin(claim, begun(run))
        store.record(
            claim,
            [
                Said(text="secret"),
                VerifyEnded(code=1, output="no"),
                CollisionSeen(session_id="x", detail="y"),
            ],
        )
        assert [type(record.event) for record in store.attempt_records(run.id, 1)] == [
            VerifyEnded,
            CollisionSeen,
        ]
        assert store.attempt_records(run.id, 2) == []
