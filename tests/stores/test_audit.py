"""The audit trail on both databases: one chain over all writers, with the actor of every change. A
changed, missing or invented line is always found and named."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from perdure import store as stores
from perdure.host.actors import LONGEST, acting, actor, current
from perdure.model import Decision, Outcome, OutcomeKind, RunState, Token, TokenScope
from perdure.model.codec import encode, plain
from perdure.model.events import Said
from perdure.protocols import Ending
from perdure.rules.audit_chain import problems, read
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import claimed, submit
from tests.servers.postgres import Server

DONE = Ending(
    outcome=Outcome(kind=OutcomeKind.SUCCEEDED), decision=Decision(state=RunState.SUCCEEDED)
)


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], SqlStore]]:
    if request.param == "sqlite":
        url = str(tmp_path / "perdure.db")
    else:
        server: Server = request.getfixturevalue("postgres")
        url = server.database(migrated=True)
    made: list[SqlStore] = []

    def again() -> SqlStore:
        made.append(stores.open(url))
        return made[-1]

    yield again
    for each in made:
        each.close()


def life(store: SqlStore, doer: str) -> str:
    """Make a run that a person begins, updates and stops, with an attempt by perdure itself. Return
    the run's id."""
    with acting(doer):
        run = submit(store)
        claim = claimed(store, run)
        store.record(claim, [Said("A word.")])
        store.finish(claim, DONE)
        store.update(run.id, "More.")
        store.request_cancel(run.id)
    return run.id


def who(store: SqlStore, run: str) -> list[tuple[str, str]]:
    return [(line.kind, line.actor) for line in store.audit(run=run)]


def test_every_change_of_state_has_its_actor(opened: Callable[[], SqlStore]) -> None:
    store = opened()
    run = life(store, "token:ada")
    assert who(store, run) == [
        ("run_submitted", "token:ada"),
        ("attempt_claimed", "perdure"),
        ("attempt_ended", "perdure"),
        ("run_finished", "perdure"),
        ("context_added", "token:ada"),
        ("run_queued", "token:ada"),
        ("cancel_requested", "token:ada"),
        ("run_finished", "token:ada"),
    ]
    # The agent's messages are only in the journal. Each record there has its actor, too.
    records = store.history(run)
    assert {record.actor for record in records} == {"perdure", "token:ada"}
    assert len(records) == len(who(store, run)) + 1
    store.actor = "local:ben@box"
    submit(store)
    store.add_token(Token(name="ci", scope=TokenScope.READ, created=0), "0" * 64)
    store.remove_token("ci")
    store.sign_in("ada", "1" * 64, 60)
    last = store.audit(actor="BEN@")
    assert [(line.kind, line.about) for line in last] == [
        ("run_submitted", ""), ("token_added", "ci (read)"), ("token_removed", "ci"),
    ]  # fmt: skip
    assert store.audit()[-1].actor == "token:ada" and store.audit(actor="%") == []
    assert list(store.audit_problems()) == []
    assert store.audit_head() == (len(store.audit()), store.audit()[-1].hash)


def test_many_writers_make_one_chain(opened: Callable[[], SqlStore]) -> None:
    """Hosts and threads write at once, also under claims: no duplicate number, no gap, no deadlock."""
    trouble: list[BaseException] = []

    def write(name: str) -> None:
        try:
            store = opened()
            for _ in range(5):
                life(store, name)
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=write, args=(f"token:{each}",)) for each in "abc"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert trouble == []
    store = opened()
    assert [line.number for line in store.audit()] == list(range(1, 3 * 5 * 8 + 1))
    assert list(store.audit_problems()) == []


def test_a_write_that_fails_leaves_no_line(opened: Callable[[], SqlStore]) -> None:
    store = opened()
    run = submit(store)
    before = store.audit_head()
    with pytest.raises(Exception, match="taken"):
        submit(store, name=run.name)
    assert store.audit_head() == before


TAMPERED = {
    "an actor": ("UPDATE audit SET actor = 'perdure' WHERE number = "
                 "5", "line 5 was changed: context_added of run"),
    "a line is gone": ("DELETE FROM audit WHERE number = 3", "line 3 is missing before line 4"),
    "the last line": ("DELETE FROM audit WHERE number = 8", "the end of the trail is missing: "
    "line 8 was its last"),
    "the head": ("DELETE FROM audit_head", "the record of the trail's last line is missing"),
    "the first line": ("DELETE FROM audit WHERE number = 1", "line 1 is missing before line 2"),
    "a record": ("UPDATE records SET event = replace(event, 'stopped', 'STOPPED') WHERE kind = "
                 "'run_finished'", "was changed: run_finished"),
    "its actor": ("UPDATE records SET actor = 'token:eve' WHERE kind = "
                  "'cancel_requested'", "record 8 was changed: cancel_requested"),
    "a record is gone": ("DELETE FROM records WHERE kind = "
                         "'cancel_requested'", "record 8 is missing: cancel_requested"),
    "a record is made up": (
        "INSERT INTO records (run, attempt, at, kind, event, actor) SELECT run, 0, at, "
        "'run_queued', event, 'perdure' FROM records LIMIT 1",
        "is not in the trail",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("statement", "said"), TAMPERED.values(), ids=TAMPERED)
def test_what_was_changed_is_found_and_named(tmp_path: Path, statement: str, said: str) -> None:
    place = tmp_path / "perdure.db"
    with closing(stores.open(place)) as store:
        life(store, "token:ada")
    with closing(sqlite3.connect(place)) as raw, raw:
        for name in ("records_stay", "audit_stays", "audit_is_kept"):
            raw.execute(f"DROP TRIGGER {name}")
        assert raw.execute(statement).rowcount > 0
    with closing(stores.open(place, read_only=True)) as store:
        found = list(store.audit_problems())
    assert found and any(said in each for each in found), found


def test_the_database_itself_keeps_the_trail(tmp_path: Path) -> None:
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        submit(store)
    with closing(sqlite3.connect(tmp_path / "perdure.db")) as raw:
        for statement in ("UPDATE audit SET actor = 'eve'", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)


def test_an_exported_trail_can_be_checked_by_anybody(tmp_path: Path) -> None:
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        life(store, actor("forge", 'hub/"ädä\u202e'))
        texts = [encode(line) for line in store.audit()]
    previous = ""
    for text in texts:  # This verifies the chain as the documentation says, without perdure.
        line = json.loads(text)
        given = line.pop("hash")
        assert line["previous"] == previous
        text = json.dumps(line, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(text.encode()).hexdigest()
        assert previous == given
    lines = [read(text, number) for number, text in enumerate(texts, 1)]
    assert list(problems(lines)) == []
    assert list(problems([])) == []
    assert "line 2 is missing" in " ".join(problems([lines[0], *lines[2:]]))
    assert "the order is broken" in " ".join(problems([lines[1], lines[0]]))
    for bad in ("", "[]", "{}", "nonsense", "[" * 5000, '{"number": "x"}', '"' + "a" * 100_000):
        with pytest.raises(ValueError, match="line 7 of the file"):
            read(bad, 7)
    wrong = plain(lines[0]) | {"number": "one"}
    with pytest.raises(ValueError, match="is not a line of an audit trail"):
        read(json.dumps(wrong), 1)


def test_actors() -> None:
    assert current() == "perdure" and current("local:me") == "local:me"
    with acting("token:a"):
        assert current("local:me") == "token:a"
        with acting("token:b"):
            assert current() == "token:b"
        assert current() == "token:a"
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        assert seen == ["perdure"]
    assert actor("forge", "hub/\x1b[31ma\nb\u202e") == "forge:hub/a b"
    assert len(actor("token", "x" * 500)) == LONGEST


def test_a_refused_request_is_a_line(opened: Callable[[], SqlStore]) -> None:
    """`note_refusal` adds a line with the actor and the request, and the chain stays whole."""
    store = opened()
    store.note_refusal("token:ada", "POST /api/v1/runs")
    (line,) = store.audit()
    assert (line.kind, line.actor, line.run) == ("refused", "token:ada", "")
    assert "POST /api/v1/runs" in str(line)
    assert list(store.audit_problems()) == []
