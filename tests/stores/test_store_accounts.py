"""The seats of an account with real concurrency: many connections, but never more runs at once than
seats."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from perdure import store as stores
from perdure.model import AccountSlot, Parking, RunState
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import LEASE_S, SUCCESS, submit
from tests.servers.postgres import Server

SEAT = AccountSlot(account="claude/1", agent="claude", jobs=2)


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], SqlStore]]:
    """Yield a function that opens the same database, each time by a new connection."""
    server: Server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    place = server.database(migrated=True) if server else tmp_path / "perdure.db"
    made: list[SqlStore] = []

    def again() -> SqlStore:
        made.append(stores.open(place))
        return made[-1]

    yield again
    for store in made:
        store.close()


def test_six_workers_share_two_seats(opened: Callable[[], SqlStore]) -> None:
    """Six workers with separate connections claim and finish 36 runs of one account. Never more
    than two run at once, and all are finished."""
    store = opened()
    runs = [submit(store) for _ in range(36)]
    most: list[int] = []
    wrong: list[BaseException] = []

    def work(mine: SqlStore, name: str) -> None:
        try:
            while mine.find([RunState.QUEUED], limit=1):
                # The workers claim as many runs as they get, so that without the seats many would
                # run at once.
                claims = [
                    claim
                    for _ in range(3)
                    if (claim := mine.claim(name, LEASE_S, seat=SEAT)) is not None
                ]
                most.append(len(mine.claims()))
                for claim in claims:
                    mine.finish(claim, SUCCESS)
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(opened(), f"worker-{n}")) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert max(most) <= 2
    assert [store.get(run.id).state for run in runs] == [RunState.SUCCEEDED] * len(runs)


def test_what_is_parked_stays_so(opened: Callable[[], SqlStore]) -> None:
    """A parked account is known to another process, and to perdure after a restart."""
    first = opened()
    until = first.now() + 3_600_000
    first.park(Parking(what="claude/1", until=until, reason="limited"))
    run = submit(first)
    first.close()
    second = opened()
    assert [(parking.what, parking.until) for parking in second.parked()] == [("claude/1", until)]
    assert second.claim("bob", LEASE_S, run.id, SEAT) is None


def test_what_is_over_does_not_stay(tmp_path: Path) -> None:
    """A pause that has expired is deleted by the next write about pauses. One that is still valid
    stays."""
    with closing(stores.open(tmp_path / "perdure.db")) as store:
        run = submit(store)
        for number in range(3):
            store.park(Parking(what=f"claude/{number}", until=store.now(), reason="limited"))
        store.park(Parking(what="codex/1", until=store.now() + 3_600_000, reason="limited"))
        for again in (
            lambda: store.unpark("gemini/1"),
            lambda: store.defer(run.id, store.now() + 1000, "limited"),
        ):
            again()
            with closing(sqlite3.connect(tmp_path / "perdure.db")) as other:
                assert other.execute("SELECT what FROM parked").fetchall() == [("codex/1",)]
            store.park(Parking(what="claude/1", until=store.now(), reason="limited"))
