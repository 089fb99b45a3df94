"""One trial of each kind that `make host-faults` runs by the hundred."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hosts import database, holders
from tests.servers.postgres import Server, running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Start a server for these tests only, so that it may be killed."""
    with running(**database.SERVER) as server:
        yield server


@pytest.mark.parametrize("kind", database.KINDS)
def test_a_server_in_trouble_loses_and_doubles_nothing(server: Server, kind: str) -> None:
    """While the server restarts, is killed, cuts a COMMIT, has no connections, or reports failed
    transactions, four writers get one outcome for each key (F8)."""
    assert database.trial(server, kind, seed=7) == []


def test_who_lost_the_lease_is_ended_and_refused(postgres: Server) -> None:
    """A host that holds a lease is stopped, killed, or cut off. Its agent has ended before another
    host takes over, and none of its later writes is stored. If its shim was stopped or killed as
    well, the agent may still run, and only the fencing token protects the run (F10)."""
    with ThreadPoolExecutor(len(holders.KINDS)) as pool:
        wrong = list(pool.map(lambda kind: holders.trial(postgres, kind, seed=7), holders.KINDS))
    assert wrong == [[] for _ in holders.KINDS]
