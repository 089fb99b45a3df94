"""PostgreSQL's own part of the store: the last checks in the schema, interrupted upgrades, several
processes, and errors in plain words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from perdure import store as stores
from perdure.errors import StoreError
from perdure.model import RunState, TaskSpec
from perdure.rules.lifecycle import FINAL, MOVES
from perdure.store.migrate import newest
from perdure.store.postgres.database import migration
from perdure.testing.stores.samples import claimed, place, submit
from tests.conftest import Scratch
from tests.patience import PATIENCE_S
from tests.servers.postgres import Server
from tests.servers.proxy import Proxy

HERE = Path(__file__).parent
EDGES = {(before, after) for (before, _), after in MOVES.items()}
SCHEMA = """
SELECT 'column', table_name::text, column_name::text, data_type::text, is_nullable::text FROM information_schema.columns
WHERE table_schema = 'public' UNION ALL
SELECT 'index', tablename::text, indexdef::text, '', '' FROM pg_indexes WHERE schemaname = 'public' UNION ALL
SELECT 'trigger', event_object_table::text, trigger_name::text, action_condition::text, event_manipulation::text
FROM information_schema.triggers UNION ALL
SELECT 'version', version::text, '', '', '' FROM perdure_schema ORDER BY 1, 2, 3, 4, 5
"""


@pytest.fixture
def hand(postgres: Server) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Open a connection to perdure's database, for SQL that a person might run."""
    with closing(psycopg.connect(postgres.database(migrated=True), autocommit=True)) as connection:
        yield connection


def test_the_schema_knows_the_same_moves(hand: psycopg.Connection[tuple[object, ...]]) -> None:
    """With manual SQL a run's state can be changed exactly along `lifecycle.MOVES`. The database
    itself refuses every other change."""
    hand.execute("DROP FUNCTION runs_begin_waiting() CASCADE")
    for before in RunState:
        for after in (state for state in RunState if state is not before):
            name = f"{before}-{after}"
            _insert(hand, name, before)
            allowed = True
            try:
                _move(hand, name, before, after)
            except psycopg.errors.CheckViolation as error:
                assert "cannot move" in str(error)
                allowed = False
            assert allowed is ((before, after) in EDGES), name
            hand.execute("DELETE FROM runs")


@pytest.mark.parametrize(
    "change",
    ["state = 'sleeping'", "state = 'running', attempt = 1", "state = 'running', worker = 'ann', lease_until = 5", "attempt = attempt + 1",
     "state = 'succeeded', finished = 1", "worker = 'ann'", "cancel_requested = 2", "finished = 5", "opened = 1, removed = 5"],
)  # fmt: skip
def test_the_schema_refuses_what_no_program_may_do(
    hand: psycopg.Connection[tuple[object, ...]], change: str
) -> None:
    """The database itself refuses an unknown state, a running run without a holder or without a
    counted attempt, and an end without a time."""
    _insert(hand, "one", RunState.QUEUED)
    with pytest.raises(psycopg.errors.CheckViolation):
        hand.execute(f"UPDATE runs SET {change}".encode())


def test_the_schema_refuses_a_second_writer_and_a_changed_journal(
    hand: psycopg.Connection[tuple[object, ...]],
) -> None:
    """The database itself refuses two running runs in one workspace or conversation, and a change
    of a record."""
    for number, (scope, where) in enumerate([("a", "p"), ("b", "p"), ("a", "q")]):
        _insert(hand, str(number), RunState.QUEUED, scope, where)
    _move(hand, "0", RunState.QUEUED, RunState.RUNNING)
    for other in ("1", "2"):
        with pytest.raises(psycopg.errors.UniqueViolation):
            _move(hand, other, RunState.QUEUED, RunState.RUNNING)
    hand.execute(
        "INSERT INTO records (run, attempt, at, kind, event) VALUES ('0', 0, 1, 'said', '{}')"
    )
    with pytest.raises(psycopg.errors.CheckViolation, match="append-only"):
        hand.execute("UPDATE records SET at = 2")


def test_an_upgrade_that_is_cut_leaves_old_or_new(postgres: Server) -> None:
    """The connection is cut at each message of an upgrade in turn. Afterwards the schema is missing
    or complete, and the next try completes it."""
    whole = postgres.ask(SCHEMA, postgres.database(migrated=True))
    assert len(whole) > 100
    number, cuts = 3, 1
    while cuts:
        url = postgres.database()
        with closing(Proxy(postgres.port)) as proxy:
            proxy.cut_message(number)
            stores.open(postgres.url(url.rpartition("/")[2], port=proxy.port)).close()
            cuts = proxy.cuts
        assert postgres.ask(SCHEMA, url) == whole
        number += 1 + number // 4
    assert number > 30


def test_a_trigger_that_does_more_than_refuse_is_no_migration() -> None:
    """A trigger's statement that the translation from SQLite does not know is refused with its
    text, and not executed."""
    with pytest.raises(ValueError, match="no such trigger"):
        list(migration("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM runs; END;"))


def test_workers_of_several_processes_never_share(postgres: Server) -> None:
    """Two processes make 120 claims. Each attempt goes to one of them, and each workdir and
    conversation has one writer at a time."""
    url = postgres.database(migrated=True)
    with closing(stores.open(url)) as store:
        runs = [
            store.add(
                TaskSpec(prompt="x", scope=f"scope-{n % 40}"),
                f"{n:08d}",
                f"run-{n}",
                place(f"{n % 50}"),
            )
            for n in range(60)
        ]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(stores.__file__).parents[2])}
        command = [sys.executable, str(HERE / "racing.py"), url]
        pipe = subprocess.PIPE
        workers = [
            subprocess.Popen(
                [*command, f"worker-{n}", str(n)], env=environ, stdout=pipe, stderr=pipe
            )
            for n in range(2)
        ]
        claims: Counter[str] = Counter()
        for worker in workers:
            out, err = worker.communicate(timeout=PATIENCE_S)
            assert worker.returncode == 0, err.decode()
            claims.update(line for line in out.decode().split("\n") if line)
        assert claims == Counter(f"{run.id} {attempt}" for run in runs for attempt in (1, 2))
        assert store.claims() == [] and len(store.find([RunState.SUCCEEDED], limit=2000)) == 60


def test_a_database_that_cannot_be_used_is_told_in_a_sentence(postgres: Server) -> None:
    """A missing database or user, another program's tables, a newer schema, and an invalid address
    are reported with what is wrong and where, and never with the password."""
    newer, strange = postgres.database(migrated=True), postgres.database()
    postgres.ask(f"UPDATE perdure_schema SET version = {newest() + 1}", newer)
    postgres.ask("CREATE TABLE photos (name TEXT)", strange)
    secret = "postgresql://perdure:hunter2@127.0.0.1"
    cases = {
        f"{secret}:{postgres.port}/nowhere": "does not exist",
        f"{secret.replace('perdure', 'nobody')}:{postgres.port}/postgres": "does not exist",
        strange: "another program",
        newer: "newer perdure",
        f"{secret}:{postgres.port}/postgres?colour=red": "cannot be read",
    }
    for url, words in cases.items():
        with pytest.raises(StoreError, match=words) as refused:
            stores.open(url)
        assert refused.value.hint and "hunter2" not in f"{refused.value} {refused.value.hint}"
    assert postgres.ask("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", strange) == [
        (1,)
    ]


def test_characters_and_numbers_that_do_not_fit(postgres: Server) -> None:
    """PostgreSQL has no NUL in a text, so an agent's NUL is stored as its symbol. A reader cannot
    write."""
    url = postgres.database(migrated=True)
    with closing(stores.open(url)) as store:
        run = submit(
            store, TaskSpec(prompt="a\x00b \U0001f9ea'; DROP TABLE runs; -- 100% :name %(name)s")
        )
        assert (
            store.contexts(run.id)[0].text
            == "a\u2400b \U0001f9ea'; DROP TABLE runs; -- 100% :name %(name)s"
        )
        assert store.get(run.id).spec.prompt.startswith("a\x00b")
        claimed(store, run)
    with closing(stores.open(url, read_only=True)) as reader:
        assert len(reader.find()) == 1
        with pytest.raises(StoreError, match="reading only"):
            reader.claim("ann", 60.0)


def test_the_verbs_work_on_it_and_show_no_password(postgres: Server, scratch: Scratch) -> None:
    """`ls`, `config show` and `doctor` work on a database whose address has a password, and do not
    print it."""
    url = postgres.database(migrated=True).replace("perdure@", "perdure:hunter2@")
    with closing(stores.open(url)) as store:
        run = submit(store)
    environ = {**scratch.environ, "PERDURE_DATABASE": url}

    def said(*words: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "perdure", *words],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert "hunter2" not in ran.stdout + ran.stderr
        return ran.stdout

    assert [row["id"] for row in json.loads(said("ls", "--json"))["runs"]] == [run.id]
    assert json.loads(said("config", "show", "--json"))["settings"]["database"] == {
        "value": url.replace("hunter2", "***"),
        "origin": "PERDURE_DATABASE",
    }
    findings = [
        each
        for each in json.loads(said("doctor", "--json"))["findings"]
        if each["topic"] == "store"
    ]
    assert findings[0]["state"] == "ok" and "PostgreSQL" in findings[0]["message"]
    assert any("fsync" in each["message"] and each["state"] == "warn" for each in findings)
    # A variable may name the state directory while the user's file has the database's address.
    del environ["PERDURE_DATABASE"]
    config = scratch.home / "config/perdure/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'database = "{url}"\n')
    environ |= {
        "XDG_CONFIG_HOME": str(scratch.home / "config"),
        "PERDURE_STATE": str(scratch.home / "state"),
    }
    assert [row["id"] for row in json.loads(said("ls", "--json"))["runs"]] == [run.id]


def _insert(
    hand: psycopg.Connection[tuple[object, ...]],
    id: str,
    state: RunState,
    scope: str = "",
    where: str = "",
) -> None:
    held = state is RunState.RUNNING
    hand.execute(
        "INSERT INTO runs (id, name, state, agent, scope, workspace_id, place, attempts_allowed, "
        "worker, lease_until, created, updated, finished, spec, workspace) VALUES (%s, %s, %s, "
        "'claude', %s, %s, '/', 3, %s, %s, 1, 1, %s, '{}', '{}')",
        (
            id,
            f"run-{id}",
            state,
            scope or id,
            where or id,
            "ann" if held else "",
            5 if held else 0,
            1 if state in FINAL else None,
        ),
    )


def _move(
    hand: psycopg.Connection[tuple[object, ...]], id: str, before: RunState, after: RunState
) -> None:
    held = after is RunState.RUNNING
    counted = before is RunState.QUEUED and held
    hand.execute(
        "UPDATE runs SET state = %s, worker = %s, lease_until = %s, finished = %s, attempt = "
        "attempt + %s WHERE id = %s",
        (
            after,
            "ann" if held else "",
            5 if held else 0,
            1 if after in FINAL else None,
            int(counted),
            id,
        ),
    )
