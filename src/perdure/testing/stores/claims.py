"""Tests of which worker performs a run: claims, leases, adoption of attempts, and fencing of
workers that lost their claim."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import LostLease
from perdure.model import (
    Decision,
    RunState,
    SessionKey,
    TaskSpec,
)
from perdure.model.events import Said
from perdure.testing.stores.samples import (
    AGAIN,
    FAILURE,
    LAPSED_S,
    LEASE_S,
    SUCCESS,
    Store,
    begun,
    claimed,
    ids_of,
    session_of,
    submit,
)


class Claiming:
    """Tests of which runs a worker may claim."""

    def test_a_claim_is_the_next_attempt(self, store: Store) -> None:
        """A claim changes the run's state to running, counts an attempt, and adds the attempt's
        row. All of this is stored before anything is launched."""
        run = submit(store)
        claim = claimed(store, run)
        assert (claim.attempt, claim.worker, claim.run.state, claim.run.attempt) == (
            1,
            "ann",
            RunState.RUNNING,
            1,
        )
        assert claim.run.lease_until > store.now()
        [attempt] = store.attempts(run.id)
        assert (attempt.number, attempt.worker, attempt.ended, attempt.outcome) == (
            1,
            "ann",
            None,
            None,
        )
        assert store.claim("bob", LEASE_S, run.id) is None

    def test_the_oldest_due_run_comes_first(self, store: Store) -> None:
        """A claim without a run's name takes the run that became due first. If several became due
        at the same time, it takes the oldest. It returns None if no run is due."""
        first, second = submit(store), submit(store)
        waiting = submit(store)
        store.finish(
            claimed(store, waiting),
            replace(
                AGAIN, decision=Decision(state=RunState.QUEUED, run_after=store.now() + 3_600_000)
            ),
        )
        taken = [store.claim("ann", LEASE_S), store.claim("ann", LEASE_S)]
        assert [claim and claim.run.id for claim in taken] == [first.id, second.id]
        assert store.claim("ann", LEASE_S) is None
        assert store.claim("ann", LEASE_S, waiting.id) is None
        assert store.claim("ann", LEASE_S, "no such id") is None

    def test_what_is_due_is_listed_as_it_is_claimed(self, store: Store) -> None:
        """`due` lists runs in the order in which they would be claimed, and claims none of them.
        Runs that wait for a later time, are running, or share a workdir or conversation with a
        running one are left out."""
        first, beside, second = (
            submit(store, where="shared"),
            submit(store, where="shared"),
            submit(store),
        )
        waiting = submit(store)
        store.finish(
            claimed(store, waiting),
            replace(
                AGAIN, decision=Decision(state=RunState.QUEUED, run_after=store.now() + 3_600_000)
            ),
        )
        assert ids_of(store.due()) == [first.id, beside.id, second.id]
        assert ids_of(store.due(limit=1)) == [first.id]
        claimed(store, first)
        assert ids_of(store.due()) == [second.id]

    def test_one_writer_per_workspace(self, store: Store) -> None:
        """If two runs share a workspace, the second waits until the first has ended. Meanwhile,
        runs in other workspaces are claimed."""
        first, second, other = (
            submit(store, where="shared"),
            submit(store, where="shared"),
            submit(store),
        )
        claim = claimed(store, first)
        assert store.claim("bob", LEASE_S, second.id) is None
        passed = store.claim("bob", LEASE_S)
        assert passed is not None and passed.run.id == other.id
        store.finish(claim, SUCCESS)
        assert claimed(store, second, "bob").attempt == 1

    def test_one_writer_per_conversation(self, store: Store) -> None:
        """Two runs of one agent and scope never run at the same time. For another agent, the same
        scope means a different conversation."""
        spec = TaskSpec(prompt="x", scope="issue-7")
        first, second, codex = (
            submit(store, spec),
            submit(store, spec),
            submit(store, replace(spec, agent="codex")),
        )
        claim = claimed(store, first)
        assert store.claim("bob", LEASE_S, second.id) is None
        claimed(store, codex, "bob")
        store.finish(claim, FAILURE)
        claimed(store, second, "bob")

    def test_renewing_extends_the_lease(self, store: Store) -> None:
        """`renew` extends the lease, and returns whether the run should be stopped."""
        run = submit(store)
        claim = claimed(store, run, lease_s=LAPSED_S)
        assert [lapsed.run.id for lapsed in store.lapsed()] == [run.id]
        assert not store.renew(claim, LEASE_S).cancel_requested
        assert not store.lapsed()
        store.request_cancel(run.id)
        assert store.renew(claim, LEASE_S).cancel_requested


class Adopting:
    """Tests of attempts whose worker died."""

    def test_a_lapsed_attempt_is_adopted_once(self, store: Store) -> None:
        """If two workers adopt the same attempt, only one succeeds. The attempt keeps its number,
        and its old worker can no longer write."""
        run = submit(store)
        old = claimed(store, run, lease_s=LAPSED_S)
        [seen] = store.lapsed()
        assert (seen.run.id, seen.attempt, seen.worker) == (run.id, 1, "ann")
        new = store.adopt(seen, "bob", LEASE_S)
        assert (new.attempt, new.worker, new.run.worker) == (1, "bob", "bob")
        with pytest.raises(LostLease):
            store.adopt(seen, "cid", LEASE_S)
        with pytest.raises(LostLease):
            store.renew(old, LEASE_S)
        assert [attempt.worker for attempt in store.attempts(run.id)] == ["bob"]
        assert store.finish(new, AGAIN).state is RunState.QUEUED

    def test_an_owner_that_renewed_is_not_robbed(self, store: Store) -> None:
        """A worker that renews its lease keeps the attempt. This holds even if another worker has
        already seen the lease as expired."""
        claim = claimed(store, submit(store), lease_s=LAPSED_S)
        [seen] = store.lapsed()
        store.renew(claim, LEASE_S)
        with pytest.raises(LostLease):
            store.adopt(seen, "bob", LEASE_S)
        store.finish(claim, SUCCESS)

    def test_all_claims_are_listed(self, store: Store) -> None:
        """`claims` returns exactly the running runs, whether or not their leases have expired."""
        lapsed, held, done = submit(store), submit(store), submit(store)
        claimed(store, lapsed, lease_s=LAPSED_S)
        claimed(store, held, "bob")
        store.finish(claimed(store, done), SUCCESS)
        assert {(claim.run.id, claim.worker) for claim in store.claims()} == {
            (lapsed.id, "ann"),
            (held.id, "bob"),
        }


class Fencing:
    """Tests that a worker that lost its claim cannot write."""

    def test_a_lost_claim_writes_nothing(self, store: Store) -> None:
        """After another worker has taken over and ended the attempt, each write with the old claim
        raises LostLease and changes nothing."""
        run = submit(store)
        stale = claimed(store, run, lease_s=LAPSED_S)
        store.finish(store.adopt(store.lapsed()[0], "bob", LEASE_S), AGAIN)
        claimed(store, run, "ann")
        before = (
            store.get(run.id),
            store.attempts(run.id),
            store.history(run.id),
            store.lineage(SessionKey("claude", run.scope)),
        )
        session = session_of(run, "s-1")
        for write in (
            lambda: store.renew(stale, LEASE_S),
            lambda: store.begin(stale, begun(run, session)),
            lambda: store.record(stale, [Said(text="late")], session),
            lambda: store.finish(stale, replace(SUCCESS, sessions=(session,))),
            lambda: store.adopt(stale, "cid", LEASE_S),
        ):
            with pytest.raises(LostLease):
                write()
        assert before == (
            store.get(run.id),
            store.attempts(run.id),
            store.history(run.id),
            store.lineage(SessionKey("claude", run.scope)),
        )

    def test_another_worker_is_not_the_holder(self, store: Store) -> None:
        """A worker cannot write with another worker's claim, even if the run and the attempt are
        right."""
        claim = claimed(store, submit(store))
        with pytest.raises(LostLease):
            store.record(replace(claim, worker="bob"), [Said(text="me too")])
