"""A store that has grown for years, compared with a young one: the list of runs, the board, and a
claim.

    python -m bench.grown [RUNS [EVENTS]]

Both stores have the same mix of states and the same number of events for each run. perdure's own
store makes a few runs, and SQL multiplies their rows: a hundred thousand runs would take hours.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from bench.measure import Row, command, interleaved, ms, table
from bench.service import fill, looked, serving, state_directory
from perdure import store as stores

YOUNG, OLD, EVENTS = 1_000, 100_000, 100
FIRST = 20
"""Number of runs that perdure's own store makes. `fill` has each of its states once in 20 runs."""
CLAIMS = 15
GOAL = 1.5


def rows(disk: Path, old: int = OLD, events: int = EVENTS) -> Iterator[Row]:
    """Yield the rows. `events`: number of events of each run."""
    with tempfile.TemporaryDirectory(dir=disk) as place:
        young, grown = Path(place, "young"), Path(place, "grown")
        for directory, runs in ((young, YOUNG), (grown, old)):
            directory.mkdir()
            _grow(directory, runs, events)
        yield from _compared(young, grown, f"{old:,} runs, {old * events:,} events")


def _compared(young: Path, grown: Path, size: str) -> Iterator[Row]:
    words = [sys.executable, "-m", "perdure", "ls"]
    listed = interleaved(9, *(command(words, each, _environ(each)) for each in (grown, young)))
    yield _row("perdure ls", size, listed)
    with serving(grown, {}, 0) as (port, token), serving(young, {}, 0) as (other, other_token):
        pages = {}
        for where, at, key in ((grown, port, token), (young, other, other_token)):
            with closing(HTTPConnection("127.0.0.1", at)) as line:
                pages[where] = looked(line, "/", key)
    yield _row("the board", size, [pages[grown], pages[young]])
    found: list[list[float]] = [[], []]
    with (
        closing(stores.open(_database(grown))) as one,
        closing(stores.open(_database(young))) as other_store,
    ):
        for _ in range(CLAIMS):
            for taken, store in zip(found, (one, other_store), strict=True):
                begun = time.perf_counter()
                assert store.claim("w", 3600) is not None
                taken.append(time.perf_counter() - begun)
    yield _row("a claim", size, [statistics.median(each) for each in found])


def _row(what: str, size: str, took: list[float]) -> Row:
    young = f"{YOUNG:,} runs"
    return Row(f"{what}, {size}", ms(took[0]), young, ms(took[1]), took[0] / took[1], GOAL)


def _database(place: Path) -> Path:
    return state_directory(place) / "perdure.db"


def _environ(place: Path) -> dict[str, str]:
    return {"HOME": str(place), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def _grow(place: Path, runs: int, events: int) -> None:
    """Make a store with this number of runs, each with this number of events."""
    fill(place, FIRST)
    with closing(sqlite3.connect(_database(place), isolation_level=None)) as database:
        database.execute("pragma synchronous = off")
        triggers = database.execute(
            "select name, sql from sqlite_master where type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            database.execute(f"drop trigger {name}")
        database.execute("begin")
        database.execute(
            "create temp table copies as with recursive n (n) as "
            f"(select 1 union all select n + 1 from n where n < {runs // FIRST - 1}) select n from n"
        )
        _multiply(database, "runs", id=_ID.format("id"), name="name || '-' || n", **_OWN)
        _multiply(database, "contexts", run=_ID.format("run"))
        _multiply(database, "attempts", run=_ID.format("run"))
        database.execute(
            "insert into records (run, attempt, at, kind, event) select runs.id, runs.attempt, "
            'updated, \'said\', \'{"kind":"said","text":"\' || hex(randomblob(100)) || \'"}\' '
            "from runs, (with recursive n (n) as "
            f"(select 1 union all select n + 1 from n where n < {events}) select n from n)"
        )
        for _, sql in triggers:
            database.execute(sql)
        database.execute("commit")


_ID = "{} || '-' || n"
_OWN = {
    "scope": "scope || '-' || n",
    "workspace_id": "workspace_id || '-' || n",
    "place": "place || '-' || n",
}


def _multiply(database: sqlite3.Connection, table: str, **changed: str) -> None:
    """Insert each row of a table again for each number in `copies`. `changed`: the SQL expressions
    of the columns that differ."""
    columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
    columns = [column for column in columns if column != "ordinal"]
    values = ", ".join(changed.get(column, f"{table}.{column}") for column in columns)
    database.execute(
        f"insert into {table} ({', '.join(columns)}) select {values} from {table}, copies"
    )


def main() -> int:
    words = [int(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as disk:
        print(table(list(rows(Path(disk), *words))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
