"""Tests of the board and of the counts.

`BoardSuite` tests the board's lists of runs, the number of runs on each list, the pages of a list,
and the list of failed attempts. `CountSuite` tests the counts of runs, sessions and deliveries. It
also tests that a caller that reads ended attempts page by page gets each of them.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from perdure.model import Condition, OutcomeKind, RunState, SessionState, TaskSpec
from perdure.model.events import CollisionSeen, Said, VerifyEnded
from perdure.testing.stores.inbox import DULL, arrived
from perdure.testing.stores.samples import (
    AGAIN,
    FAILURE,
    LAPSED_S,
    SUCCESS,
    Store,
    begun,
    claimed,
    ending,
    events_of,
    numbers_of,
    session_of,
    submit,
)

ASKING_RUN = ending(
    OutcomeKind.NEEDS_INPUT,
    RunState.FAILED,
    condition=Condition(type="needs_person", message="which one?", at=1),
)
SEEN = ending(
    OutcomeKind.SUCCEEDED,
    RunState.SUCCEEDED,
    condition=Condition(type="collision", message="two were there", at=1),
)


class BoardSuite:
    """Tests of `board`, `board_counts`, `board_found`, `run_properties`, `board_agents`,
    `latest_word` and `failed_attempts`."""

    def test_each_run_is_on_one_list(self, store: Store) -> None:
        """A run that needs a person is on the list `asking` and on no other. The condition
        `collision` alone does not put a run there. A removed run is on no list."""
        ended = {}
        for name, how in (
            ("asks", ASKING_RUN),
            ("seen", SEEN),
            ("done", SUCCESS),
            ("broke", FAILURE),
            ("gone", SUCCESS),
        ):
            ended[name] = store.finish(claimed(store, submit(store, name=name)), how)
        submit(store, name="waits")
        claimed(store, submit(store, name="works"))
        store.open_run(
            ended["broke"].id,
            Condition(type="open", message="a person has it", at=1),
            session_of(ended["broke"], "s"),
        )
        store.remove(ended["gone"].id)
        lists = {group: [row.name for row in store.board(group)] for group in store.board_counts()}
        assert set(lists.pop("asking")) == {"asks", "broke"} and store.board_asking() == 2
        assert {group: set(names) for group, names in lists.items() if names} == {
            "queued": {"waits"}, "running": {"works"}, "succeeded": {"done", "seen"},
        }  # fmt: skip
        assert {group: many for group, many in store.board_counts().items() if many} == {
            "asking": 2, "queued": 1, "running": 1, "succeeded": 2,
        }  # fmt: skip
        counts = store.board_counts(words="DONE")
        assert {group: many for group, many in counts.items() if many} == {"succeeded": 1}
        listed = Counter(group for _, group in store.board_found())
        assert listed == {"asking": 2, "queued": 1, "running": 1, "succeeded": 2}
        assert store.board_found(words="DONE") == [(ended["done"].id, "succeeded")]
        marks = {each.id: each.name for each in store.run_properties()}
        assert {"waits", "works", *ended} - {"gone"} <= set(marks.values())
        assert len(marks) == 7 and ended["gone"].id in marks, "a removed run has marks too"

    def test_the_marks_of_a_run(self, store: Store) -> None:
        """`run_properties` returns the repository and labels of each run. A token's limits are
        compared with them."""
        labels = {"team": "red", "x": 'a "quoted" b'}
        repo = "https://git.example.com/shop/web.git"
        run = submit(store, TaskSpec(prompt="x", repo=repo, labels=labels), name="one")
        (found,) = store.run_properties()
        assert (found.id, found.name, found.agent, found.role) == (run.id, "one", "claude", "")
        assert (found.repo, found.labels) == (repo, labels)

    def test_pages_have_all_and_nothing_twice(self, store: Store) -> None:
        """Each page starts after the last row of the previous page. Together, the pages contain
        every run once, with the latest change first."""
        names = [submit(store).name for _ in range(7)]
        found, place = [], (2**62, 2**62)
        while rows := store.board("queued", before=place, limit=3):
            found += [row.name for row in rows]
            place = rows[-1].place
        assert sorted(found) == sorted(names) and found == list(reversed(names))

    def test_words_are_words(self, store: Store) -> None:
        """A search looks in the run's name, workdir, scope and first instructions, and ignores
        case. `%` and `_` are ordinary characters in it."""
        submit(
            store, TaskSpec(prompt="Make it 100% GREEN", scope="shop#7", agent="codex"), name="one"
        )
        submit(store, TaskSpec(prompt="Paint it"), name="two", where="the_place")

        def found(words: str, agent: str = "") -> list[str]:
            rows = store.board("queued", words=words, agent=agent)
            assert store.board_counts(words=words, agent=agent)["queued"] == len(rows)
            return sorted(row.name for row in rows)

        assert found("green") == found("100%") == found("SHOP#") == found("", "codex") == ["one"]
        assert (
            found("the_pl") == ["two"] and found("the%pl") == found("e.p") == found("prompt") == []
        )
        assert found("it") == ["one", "two"] and store.board_agents() == ["claude", "codex"]

    def test_a_row_tells_of_its_attempts(self, store: Store) -> None:
        """A row contains the run's first instructions and newest attempts. `latest_word` returns
        the last message or action of the run's agent."""
        run = submit(store, TaskSpec(prompt="first line\nmore"))
        store.finish(claimed(store, run), AGAIN)
        claim = claimed(store, run)
        assert store.latest_word(run.id) == ""
        store.begin(claim, begun(run))
        store.record(claim, [Said(text="I look around")])
        [row] = store.board("running")
        assert row.prompt.startswith("first line") and numbers_of(row.attempts) == [
            1,
            2,
        ]
        assert row.workspace == run.workspace and "look around" in store.latest_word(run.id)

    def test_what_failed(self, store: Store) -> None:
        """Attempts that ended without success are returned newest first, with the current state of
        their run."""
        run = submit(store, name="one")
        store.finish(claimed(store, run), AGAIN)
        store.finish(claimed(store, run), SUCCESS)
        store.finish(claimed(store, submit(store, name="two")), FAILURE)
        found = store.failed_attempts(0, 10)
        assert [(each.name, each.state.value, each.attempt.number) for each in found] == [
            ("two", "failed", 1),
            ("one", "succeeded", 1),
        ]
        assert len(store.failed_attempts(0, 1)) == 1 and not store.failed_attempts(
            store.now() + 1, 10
        )


ASKING_CONDITION = Condition(type="needs_person", message='it asks: "what now?"', at=1)
NEEDS_PERSON = ending(OutcomeKind.NEEDS_INPUT, RunState.FAILED, condition=ASKING_CONDITION)


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
