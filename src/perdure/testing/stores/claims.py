"""Tests of which worker performs a run, and when.

The subjects are claims, leases, the adoption of attempts, and the fencing of workers that lost
their claim. `AccountSuite` tests the limits of an account: its slots, its parking, and runs that
wait without using up an attempt.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import LostLease
from perdure.model import (
    AccountSlot,
    Decision,
    OutcomeKind,
    Parking,
    RunState,
    SessionKey,
    TaskSpec,
)
from perdure.model.events import RunQueued, Said
from perdure.testing.stores.samples import (
    AGAIN,
    FAILURE,
    LAPSED_S,
    LEASE_S,
    SUCCESS,
    Store,
    begun,
    claimed,
    ending,
    ids_of,
    run_ids_of,
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


ONE = AccountSlot(account="claude/1", agent="claude", jobs=1)
HOUR = 3_600_000


class AccountSuite:
    """Tests of `claim` with an `AccountSlot` (one of the slots of an account), `park`, `unpark`,
    `parked`, `defer`, `seats_taken`, `seats_taken_under` and `latest_attempts`."""

    def test_an_account_has_so_many_seats(self, store: Store) -> None:
        """An account can have only as many running runs as it has slots (`AccountSlot.jobs`). A run
        that ends frees its slot. Other accounts have their own slots."""
        runs = [submit(store) for _ in range(4)]
        two = replace(ONE, jobs=2)
        taken = [store.claim("ann", LEASE_S, run.id, two) for run in runs]
        assert [claim is not None for claim in taken] == [True, True, False, False]
        assert store.seats_taken("claude/1") == 2 and store.get(runs[0].id).account == "claude/1"
        assert store.get(runs[2].id).attempt == 0
        assert store.claim("ann", LEASE_S, runs[2].id, replace(two, account="claude/2")) is not None
        assert taken[0] is not None
        store.finish(taken[0], FAILURE)
        assert store.seats_taken("claude/1") == 1
        assert store.claim("ann", LEASE_S, runs[3].id, two) is not None

    def test_no_number_is_any_number(self, store: Store) -> None:
        """If `jobs` is 0, or a claim is made without an `AccountSlot`, the number of running runs
        is not limited."""
        for _ in range(3):
            submit(store)
            assert store.claim("ann", LEASE_S, seat=replace(ONE, jobs=0)) is not None
        submit(store)
        assert store.claim("ann", LEASE_S, seat=ONE) is None
        assert store.claim("ann", LEASE_S) is not None

    def test_a_rule_has_so_many_seats(self, store: Store) -> None:
        """A rule can have only `rule_jobs` running runs, even if they use different accounts. Runs
        of other rules are not counted."""
        runs = []
        for rule in ("dev", "dev", "boss"):
            runs.append(submit(store, TaskSpec(prompt="do it", rule=rule)))
        seats = []
        for run in runs:
            seats.append(AccountSlot(account="", agent="claude", rule=run.spec.rule, rule_jobs=1))
        taken = []
        for run, seat in zip(runs, seats, strict=True):
            taken.append(store.claim("ann", LEASE_S, run.id, seat))
        assert [claim is not None for claim in taken] == [True, False, True]
        assert (
            store.seats_taken_under("dev"),
            store.seats_taken_under("boss"),
            store.seats_taken_under("nobody"),
        ) == (1, 1, 0)
        assert taken[0] is not None
        store.finish(taken[0], FAILURE)
        assert store.claim("ann", LEASE_S, runs[1].id, seats[1]) is not None

    def test_nothing_is_claimed_on_what_is_parked(self, store: Store) -> None:
        """A run whose account or agent is parked is not claimed. The parking of another account or
        agent has no effect on it."""
        run = submit(store)
        until = store.now() + HOUR
        for what in ("claude/1", "claude"):
            store.park(Parking(what=what, until=until, reason="limited"))
            assert store.claim("ann", LEASE_S, run.id, ONE) is None
            [parking] = store.parked()
            assert (parking.what, parking.until, parking.reason) == (what, until, "limited")
            assert 0 < parking.since <= store.now()
            store.unpark(what)
        store.park(Parking(what="claude/2", until=until, reason="another"))
        store.park(Parking(what="codex", until=until, reason="another"))
        assert store.claim("ann", LEASE_S, run.id, ONE) is not None
        assert store.get(run.id).attempt == 1

    def test_a_limit_of_one_model_holds_up_that_model(self, store: Store) -> None:
        """Parking an account for one model does not block runs with other models. `unpark` ends the
        account's parkings for all models."""
        run, other = submit(store), submit(store)
        store.park(
            Parking(what="claude/1", model="opus", until=store.now() + HOUR, reason="limited")
        )
        assert store.claim("ann", LEASE_S, run.id, replace(ONE, model="opus", jobs=0)) is None
        assert (
            store.claim("ann", LEASE_S, other.id, replace(ONE, model="haiku", jobs=0)) is not None
        )
        store.unpark("claude/1")
        assert store.parked() == []
        assert store.claim("ann", LEASE_S, run.id, replace(ONE, model="opus", jobs=0)) is not None

    def test_a_parking_is_over_at_its_time(self, store: Store) -> None:
        """After its end time, a parking blocks nothing and is not listed. If an account is parked
        again, the new end time replaces the old one."""
        run = submit(store)
        store.park(Parking(what="claude/1", until=store.now() + HOUR, reason="later"))
        store.park(Parking(what="claude/1", until=store.now(), reason="now"))
        assert store.parked() == []
        assert store.claim("ann", LEASE_S, run.id, ONE) is not None

    def test_an_ending_parks(self, store: Store) -> None:
        """If an attempt ends because of a usage limit, its account is parked in the same
        transaction. A worker that lost its claim cannot park an account in this way."""
        run = submit(store)
        claim = claimed(store, run)
        until = store.now() + HOUR
        limited = replace(
            AGAIN, parkings=(Parking(what="claude/1", until=until, reason="limited"),)
        )
        store.finish(claim, limited)
        assert [parking.until for parking in store.parked()] == [until]
        stale = claimed(store, run, lease_s=LAPSED_S)
        store.finish(store.adopt(store.lapsed()[0], "bob", LEASE_S), FAILURE)
        with pytest.raises(LostLease):
            store.finish(
                stale,
                replace(AGAIN, parkings=(Parking(what="codex/1", until=until, reason="limited"),)),
            )
        assert [parking.what for parking in store.parked()] == ["claude/1"]

    def test_a_run_that_waits_uses_up_no_attempt(self, store: Store) -> None:
        """`defer` postpones a queued run and records the reason in the run and in the journal. Runs
        in other states are not changed."""
        run = submit(store)
        until = store.now() + HOUR
        deferred = store.defer(run.id, until, "parked: limited")
        assert deferred is not None
        assert (deferred.state, deferred.attempt, deferred.run_after, deferred.reason) == (
            RunState.QUEUED,
            0,
            until,
            "parked: limited",
        )
        assert store.history(run.id)[-1].event == RunQueued(
            reason="parked: limited", run_after=until
        )
        assert store.due() == [] and store.claim("ann", LEASE_S) is None
        assert store.find()[0].run_after == until
        store.defer(run.id, 0, "")
        claim = claimed(store, run)
        assert store.defer(run.id, until, "too late") is None
        store.finish(claim, SUCCESS)
        assert store.defer(run.id, until, "too late") is None
        assert store.get(run.id).state is RunState.SUCCEEDED

    def test_the_latest_attempts_of_an_agent(self, store: Store) -> None:
        """The ended attempts of all runs of an agent are returned newest first, without other
        agents' attempts and without running ones."""
        first, second, codex = (
            submit(store),
            submit(store),
            submit(store, TaskSpec(prompt="x", agent="codex")),
        )
        for run in (first, second, codex, first):
            store.finish(claimed(store, run), ending(OutcomeKind.FAILED, RunState.QUEUED))
        claimed(store, second)
        latest = store.latest_attempts("claude")
        assert sorted((attempt.run, attempt.number) for attempt in latest) == sorted(
            [(first.id, 1), (second.id, 1), (first.id, 2)]
        )
        started = [attempt.started for attempt in latest]
        assert started == sorted(started, reverse=True)
        assert len(store.latest_attempts("claude", limit=1)) == 1
        assert set(run_ids_of(store.latest_attempts("codex"))) == {codex.id}
