"""Tests of what an attempt writes into the store, and of sessions."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, LostLease
from perdure.model import (
    Condition,
    OutcomeKind,
    Receipt,
    RunState,
    Session,
    SessionKey,
    SessionState,
    TaskSpec,
    Usage,
    Verdict,
)
from perdure.model.events import AttemptEnded, RunFinished, RunQueued, Said, SessionPinned
from perdure.testing.stores.samples import (
    AGAIN,
    FAILURE,
    SUCCESS,
    Store,
    begun,
    claimed,
    ending,
    events_of,
    ids_of,
    numbers_of,
    place,
    session_of,
    submit,
)


class Performing:
    """Tests of one attempt, from its start to its end."""

    def test_the_start_is_stored_before_the_launch(self, store: Store) -> None:
        """`begin` stores the continuation, flags, version, session and workspace. A second `begin`
        of the same attempt is refused."""
        run = submit(store)
        claim = claimed(store, run)
        session, moved = session_of(run, "s-1"), replace(place("elsewhere"), branch="b")
        attempt = store.begin(claim, begun(run, session, moved))
        assert list(store.attempts(run.id)) == [attempt]
        assert (attempt.session_id, attempt.agent_version, attempt.flags) == (
            "s-1",
            "1.2.3",
            {"model": "small"},
        )
        assert attempt.continuation is not None and attempt.continuation.reason == "first attempt"
        assert store.session(session.key) == session
        assert store.get(run.id).workspace == moved
        with pytest.raises(Conflict):
            store.begin(claim, begun(run, session))

    def test_events_are_kept_in_order(self, store: Store) -> None:
        """Records are returned oldest first, with increasing numbers. `after` and `limit` select a
        page of them."""
        run, other = submit(store), submit(store)
        claim = claimed(store, run)
        store.record(claim, [Said(text=str(number)) for number in range(20)])
        store.record(claimed(store, other), [Said(text="not mine")])
        records = store.history(run.id)
        said = [record for record in records if isinstance(record.event, Said)]
        assert events_of(said) == [Said(text=str(number)) for number in range(20)]
        assert all(record.attempt == 1 and record.run == run.id for record in said)
        assert [record.seq for record in records] == sorted({record.seq for record in records})
        page = store.history(run.id, after=said[4].seq, limit=3)
        assert events_of(page) == [Said(text="5"), Said(text="6"), Said(text="7")]

    def test_events_are_selected(self, store: Store) -> None:
        """`run_events` returns what perdure did in all attempts of the run, without what the agent
        said. `attempt_history` returns the newest records of one attempt, with what it said."""
        run, other = submit(store), submit(store)
        claim = claimed(store, run)
        store.record(claim, [Said(text="one"), SessionPinned(session_id="s-1"), Said(text="two")])
        store.record(claimed(store, other), [Said(text="not mine")])
        done = store.run_events(run.id)
        assert [each for each in store.history(run.id) if not isinstance(each.event, Said)] == done
        assert SessionPinned(session_id="s-1") in events_of(done)
        mine = [each for each in store.history(run.id) if each.attempt == 1]
        assert store.attempt_history(run.id, 1) == mine
        assert store.attempt_history(run.id, 1, 2) == mine[-2:]
        assert not store.attempt_history(run.id, 2)

    def test_a_pinned_session_is_stored_with_its_event(self, store: Store) -> None:
        """`record` with a session stores the events and the session together, and sets the
        conversation of the attempt."""
        run = submit(store)
        claim = claimed(store, run)
        session = session_of(run, "s-9")
        store.record(claim, [SessionPinned(session_id="s-9")], session)
        assert store.session(session.key) == session
        assert store.attempts(run.id)[0].session_id == "s-9"
        assert store.history(run.id)[-1].event == SessionPinned(session_id="s-9")

    def test_what_a_live_attempt_uses_is_stored(self, store: Store) -> None:
        """`record` with a usage changes only the attempt's usage, and may be called repeatedly. The
        usage that is passed to `finish` replaces it."""
        run = submit(store)
        claim = claimed(store, run)
        for count in (10, 20):
            store.record(claim, [], usage=Usage(input=count, estimated=True))
            assert store.attempts(run.id)[0].usage == Usage(input=count, estimated=True)
        store.record(claim, [Said(text="on it goes")])
        assert store.attempts(run.id)[0].usage.input == 20
        store.finish(claim, replace(AGAIN, usage=Usage(input=21)))
        assert store.attempts(run.id)[0].usage == Usage(input=21)

    def test_an_ending_is_one_piece(self, store: Store) -> None:
        """`finish` stores outcome, receipt, usage, sessions, events and the next state in one
        transaction."""
        run = submit(store)
        claim = claimed(store, run)
        old, new = session_of(run, "s-1"), session_of(run, "s-2", SessionState.CONFIRMED)
        store.begin(claim, begun(run, old))
        receipt = Receipt(verdict=Verdict.REBUILT, reasons=("its history was lost",))
        retired = replace(old, state=SessionState.RETIRED, cause="lost")
        after = store.finish(
            claim,
            replace(
                SUCCESS,
                receipt=receipt,
                usage=Usage(10, 2, 3, 4, 0.5),
                sessions=(retired, new),
                events=(Said(text="bye"),),
            ),
        )
        assert (after.state, after.worker, after.lease_until, after.reason) == (
            RunState.SUCCEEDED,
            "",
            0,
            "",
        )
        assert after.finished is not None and store.get(run.id) == after
        [attempt] = store.attempts(run.id)
        assert (
            attempt.outcome == SUCCESS.outcome
            and attempt.receipt == receipt
            and attempt.usage.cost_usd == 0.5
        )
        assert (
            attempt.ended is not None
            and attempt.session_id == "s-2"
            and attempt.agent_version == "1.2.3"
        )
        assert store.session(old.key) == new and list(store.lineage(old.key)) == [retired, new]
        assert [type(record.event) for record in store.history(run.id)][-3:] == [
            Said,
            AttemptEnded,
            RunFinished,
        ]

    def test_an_ending_that_cannot_be_whole_is_not_there_at_all(self, store: Store) -> None:
        """If one of the sessions cannot be stored, `finish` stores nothing at all: no events, no
        other sessions, no outcome and no state."""
        run = submit(store)
        claim = claimed(store, run)
        live, fine, refused = (
            session_of(run, "s-1"),
            session_of(run, "s-0", SessionState.RETIRED),
            session_of(run, "s-2"),
        )
        store.put_session(live)
        before = (store.get(run.id), store.attempts(run.id), store.history(run.id))
        with pytest.raises(Conflict):
            store.record(claim, [Said(text="hello")], refused)
        with pytest.raises(Conflict):
            store.finish(
                claim, replace(SUCCESS, sessions=(fine, refused), events=(Said(text="bye"),))
            )
        assert before == (store.get(run.id), store.attempts(run.id), store.history(run.id))
        assert list(store.lineage(live.key)) == [live]
        store.finish(claim, SUCCESS)

    def test_an_attempt_ends_once(self, store: Store) -> None:
        """An attempt gets only one outcome. A second `finish` is refused. If the caller passes an
        AttemptEnded event, the event is not stored."""
        run = submit(store)
        claim = claimed(store, run)
        store.record(claim, [AttemptEnded(outcome=FAILURE.outcome)])
        store.finish(claim, replace(SUCCESS, events=(AttemptEnded(outcome=FAILURE.outcome),)))
        with pytest.raises(LostLease):
            store.finish(claim, FAILURE)
        ends = []
        for record in store.history(run.id):
            if isinstance(record.event, AttemptEnded):
                ends.append(record.event)
        assert ends == [AttemptEnded(outcome=SUCCESS.outcome)]

    def test_a_run_that_goes_on_keeps_its_number(self, store: Store) -> None:
        """If an attempt ends and its run is queued again, the next claim is attempt 2. The store
        keeps both attempts."""
        run = submit(store)
        again = store.finish(claimed(store, run), AGAIN)
        assert (again.state, again.attempt, again.reason, again.finished) == (
            RunState.QUEUED,
            1,
            "once more",
            None,
        )
        assert claimed(store, run).attempt == 2
        assert numbers_of(store.attempts(run.id)) == [1, 2]
        assert isinstance(store.history(run.id)[-2].event, RunQueued)

    def test_conditions_are_one_of_each_type(self, store: Store) -> None:
        """A new condition replaces the old one of the same type. The condition `needs_person` is
        removed when the run continues or succeeds."""
        run = submit(store)
        asked, seen = (
            Condition(type="needs_person", message="log in", at=1),
            Condition(type="collision", message="a", at=1),
        )
        failed = store.finish(
            claimed(store, run), ending(OutcomeKind.AUTH_FAILED, RunState.FAILED, condition=asked)
        )
        assert failed.conditions == (asked,)
        assert store.requeue(run.id, "again").conditions == ()
        store.finish(claimed(store, run), ending(OutcomeKind.LOST, RunState.QUEUED, condition=seen))
        newer = replace(seen, message="b", at=2)
        assert store.finish(
            claimed(store, run), ending(OutcomeKind.SUCCEEDED, RunState.SUCCEEDED, condition=newer)
        ).conditions == (newer,)


class SessionSuite:
    """Tests of sessions, which are stored by agent and scope."""

    def test_one_live_conversation_per_key(self, store: Store) -> None:
        """A key can have only one live session: a second one is refused until the first is retired.
        The lineage contains both, oldest first."""
        key = SessionKey("claude", "issue-7")
        first = Session(
            key=key,
            id="s-1",
            state=SessionState.CONFIRMED,
            created=1,
            updated=1,
            prompts=("00ff",),
            total=Usage(1, 2),
        )
        second = Session(
            key=key, id="s-2", state=SessionState.PINNED, created=2, updated=2, parent="s-1"
        )
        store.put_session(first)
        assert store.session(key) == first
        with pytest.raises(Conflict, match="s-1"):
            store.put_session(second)
        retired = replace(first, state=SessionState.RETIRED, cause="lost", updated=3)
        store.put_session(retired)
        assert store.session(key) is None
        store.put_session(second)
        assert store.session(key) == second
        assert list(store.lineage(key)) == [retired, second]

    def test_putting_again_replaces(self, store: Store) -> None:
        """If a session is stored again under the same key and id, it replaces the stored one."""
        key = SessionKey("claude", "issue-7")
        session = Session(key=key, id="s-1", state=SessionState.PINNED, created=1, updated=1)
        store.put_session(session)
        newer = replace(session, state=SessionState.CONFIRMED, updated=5, attempts=1)
        store.put_session(newer)
        assert list(store.lineage(key)) == [newer]

    def test_agents_never_share(self, store: Store) -> None:
        """Two sessions of different agents are separate, even if they have the same scope and
        id."""
        one = Session(
            key=SessionKey("claude", "x"), id="s", state=SessionState.PINNED, created=1, updated=1
        )
        two = replace(one, key=SessionKey("codex", "x"))
        store.put_session(one)
        store.put_session(two)
        assert store.session(one.key) == one and store.session(two.key) == two
        assert store.session(SessionKey("gemini", "x")) is None and not store.lineage(
            SessionKey("gemini", "x")
        )

    def test_a_record_is_amended_as_it_was_read(self, store: Store) -> None:
        """A changed session record is refused if another process changed the record after the
        caller had read it, or if an attempt is using the session. Several records are stored
        together or not at all."""
        run = submit(store, TaskSpec(prompt="do it", scope="talk"))
        store.put_session(session_of(run, "s-1"))
        read = store.session(SessionKey("claude", "talk"))
        assert read is not None and read.revision == 1
        store.amend_sessions([replace(read, tasks=1)])
        with pytest.raises(Conflict, match="in the meantime"):
            store.amend_sessions([replace(read, tasks=7)])
        again = store.session(read.key)
        assert again is not None and (again.tasks, again.revision) == (1, 2)
        retired, taken = (
            replace(again, state=SessionState.RETIRED, cause="renamed"),
            session_of(run, "s-1", SessionState.CONFIRMED),
        )
        with pytest.raises(Conflict):
            store.amend_sessions([retired, taken])
        assert store.session(read.key) == again
        store.amend_sessions([retired, session_of(run, "s-2")])
        named = store.session(read.key)
        assert named is not None and (named.id, named.revision) == ("s-2", 4)
        claimed(store, run)
        with pytest.raises(Conflict, match=run.name):
            store.amend_sessions([replace(named, tasks=2)])

    def test_what_statistics_and_rebuilding_ask(self, store: Store) -> None:
        """Attempts are found by the time at which they ended, and are returned with their session
        keys. The runs of a scope are returned oldest first, including runs that were removed."""
        first = submit(store, TaskSpec(prompt="do it", scope="talk"))
        store.finish(claimed(store, first), SUCCESS)
        store.remove(first.id)
        second = submit(store, TaskSpec(prompt="do it", scope="talk"))
        key = SessionKey("claude", "talk")
        assert ids_of(store.runs_of(key)) == [
            first.id,
            second.id,
        ] and not store.runs_of(SessionKey("codex", "talk"))
        claimed(store, second)
        (found,) = store.ended(0, 2**53)
        assert found[0] == key and (found[1].run, found[1].number) == (first.id, 1)
        ended = found[1].ended
        assert (
            ended is not None
            and not store.ended(0, ended)
            and store.ended(ended, ended + 1, "claude", "talk") == [found]
        )
        assert not store.ended(0, 2**53, "codex") and not store.ended(0, 2**53, "claude", "other")

    def test_a_lookup_gives_the_live_one(self, store: Store) -> None:
        """A lookup returns the live session. Once the session is retired, the lookup returns None
        until another session is stored. Each change is visible immediately."""
        run = submit(store, TaskSpec(prompt="do it", scope="talk"))
        key, first = SessionKey("claude", "talk"), session_of(run, "s-1")
        assert store.look_up(key) is None
        for session in (
            first,
            replace(first, state=SessionState.RETIRED, cause="lost"),
            session_of(run, "s-2"),
        ):
            store.put_session(session)
            assert (
                store.look_up(key)
                == store.session(key)
                == (None if session.state is SessionState.RETIRED else session)
            )

    def test_a_store_knows_itself(self, store: Store) -> None:
        """The store has an identity and a secret. They are created once and never change."""
        name, secret = store.identity()
        assert (name, secret) == store.identity() and len(name) >= 16 and len(secret) >= 32
