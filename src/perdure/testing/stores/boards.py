"""Tests of the board: its lists of runs, their counts and pages, and its list of failed
attempts."""

from __future__ import annotations

from collections import Counter

from perdure.model import Condition, OutcomeKind, RunState, TaskSpec
from perdure.model.events import Said
from perdure.testing.stores.samples import (
    AGAIN,
    FAILURE,
    SUCCESS,
    Store,
    begun,
    claimed,
    ending,
    numbers_of,
    session_of,
    submit,
)

ASKS = ending(
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
            ("asks", ASKS),
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
        """`run_properties` returns the repository and labels of each run. These are what the limits
        of a token are checked against."""
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
