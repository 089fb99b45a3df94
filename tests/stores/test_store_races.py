"""Several processes at once, some of which are killed: no process gets what another one holds, and
no acknowledged write is lost."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from perdure import store as stores
from perdure.model import RunState, SessionKey, TaskSpec
from perdure.model.events import AttemptEnded, Record, Said
from perdure.store.migrate import newest, version_of
from perdure.testing.stores.samples import claimed, place, submit
from tests.patience import PATIENCE_S

HERE = Path(__file__).parent
SOURCE = Path(stores.__file__).parents[2]


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a child Python that uses the same perdure."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_four_workers_never_share(tmp_path: Path) -> None:
    """Four processes make 2,000 claims. Each attempt goes to one of them, and each workdir and
    conversation has one writer at a time."""
    store = stores.open(tmp_path / "perdure.db")
    dice = random.Random(4)
    runs = [
        store.add(
            TaskSpec(prompt="x", scope=f"scope-{dice.randrange(300)}"),
            f"{n:08d}",
            f"run-{n}",
            place(f"{dice.randrange(300)}"),
        )
        for n in range(1000)
    ]
    workers = [start("racing.py", tmp_path / "perdure.db", f"worker-{n}", n) for n in range(4)]
    claims: Counter[str] = Counter()
    active = 0
    for worker in workers:
        out, err = worker.communicate(timeout=PATIENCE_S)
        assert worker.returncode == 0, err.decode()
        claims.update(line for line in out.decode().split("\n") if line)
        active += bool(out.strip())
    assert claims == Counter(f"{run.id} {attempt}" for run in runs for attempt in (1, 2))
    assert active > 1
    assert store.claims() == [] and len(store.find([RunState.SUCCEEDED], limit=2000)) == 1000
    assert store.problems() == []
    store.close()


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """20 writers are killed with SIGKILL at random moments. Every acknowledged write is stored, and
    nothing is incomplete."""
    database = tmp_path / "perdure.db"
    stores.open(database).close()
    dice = random.Random()
    acknowledged: list[tuple[str, str]] = []
    for _ in range(20):
        with start("writing_until_killed.py", database) as writer:
            assert writer.stdout is not None and writer.stderr is not None
            first = writer.stdout.readline()
            timer = threading.Timer(dice.uniform(0.0, 0.08), writer.kill)
            timer.start()
            said = (first + writer.stdout.read()).decode()
            timer.join()
            assert writer.wait() == -9, writer.stderr.read().decode()
        acknowledged += [(line.split()[0], line.split()[1]) for line in said.split("\n")[:-1]]
    assert len(acknowledged) > 100
    store = stores.open(database)
    assert store.problems() == []
    runs = {row.id: row for row in store.find(limit=1_000_000)}
    for what, run_id in acknowledged:
        events = [record.event for record in store.history(run_id)]
        match what:
            case "added":
                assert run_id in runs and [context.text for context in store.contexts(run_id)] == [
                    "x" * 200
                ]
            case "claimed":
                assert runs[run_id].attempt == 1 and len(store.attempts(run_id)) == 1
            case "recorded":
                assert [event for event in events if isinstance(event, Said)] == [
                    Said(text=f"{line}") for line in range(20)
                ]
                assert store.session(SessionKey("claude", f"run:{run_id}")) is not None
            case "finished":
                assert runs[run_id].state is RunState.SUCCEEDED
    for run_id, row in runs.items():
        said_count = sum(isinstance(record.event, Said) for record in store.history(run_id))
        ends = sum(isinstance(record.event, AttemptEnded) for record in store.history(run_id))
        assert said_count in (0, 20) and ends == (row.state is RunState.SUCCEEDED)
    store.close()


def test_many_processes_make_one_database(tmp_path: Path) -> None:
    """Eight processes open the same new path at once. All succeed, and the run of each one is
    stored."""
    database = tmp_path / "new" / "state" / "perdure.db"
    script = (
        "import sys; from perdure import store as stores; from perdure.model import TaskSpec; from "
        "perdure.testing.stores.samples import place\nsys.stdin.readline(); s = "
        "stores.open(sys.argv[1]); n = sys.argv[2]\ns.add(TaskSpec(prompt='x'), 'id-' + n, 'run-' "
        "+ n, place(n)); s.close()"
    )
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", script, str(database)]
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen([*command, str(n)], env=environ, stdin=pipe, stdout=pipe, stderr=pipe)
        for n in range(8)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    for child in children:
        _, err = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 0, err.decode()
    store = stores.open(database, read_only=True)
    assert {row.name for row in store.find()} == {f"run-{n}" for n in range(8)}
    assert database.stat().st_mode & 0o777 == 0o600
    store.close()


@pytest.mark.parametrize("moment", ["sqlite_master", "user_version", "application_id"])
def test_another_process_makes_the_schema_meanwhile(tmp_path: Path, moment: str) -> None:
    """A process that opens a new database while another one creates the schema in it does not take
    it for a database of another program."""
    path = tmp_path / "perdure.db"
    path.touch()

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if moment in statement:
                stores.open(path).close()
            return super().execute(statement, *values)

    with closing(sqlite3.connect(path, isolation_level=None, factory=Watched)) as connection:
        assert version_of(connection, str(path)) in (0, newest())


def test_threads_share_one_store(tmp_path: Path) -> None:
    """A heartbeat, a recorder and a reader use one store object. Nothing is refused or lost, and
    the order is kept."""
    seen: list[Record] = []

    def observe(record: Record) -> None:
        seen.append(record)
        raise RuntimeError("observers may not raise; what they raise is dropped")

    store = stores.open(tmp_path / "perdure.db", observers=[observe])
    run = submit(store)
    claim = claimed(store, run)
    failures: list[BaseException] = []

    def many(work: object) -> None:
        try:
            for number in range(100):
                work(number)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    works = [
        lambda number: store.record(claim, [Said(text=str(number))]),
        lambda _: store.renew(claim, 60.0),
        lambda _: store.history(run.id),
        lambda _: store.get(run.id),
    ]
    threads = [threading.Thread(target=many, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    kept = store.history(run.id)
    assert [record.event.text for record in kept if isinstance(record.event, Said)] == [
        str(n) for n in range(100)
    ]
    assert seen == list(kept)
    store.close()
