"""One trial of each kind that `make host-faults` runs by the hundred."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hosts import database, holders
from tests.servers.postgres import Server, running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may be killed, because no other test uses it."""
    with running(**database.SERVER) as server:
        yield server


@pytest.mark.parametrize("kind", database.KINDS)
def test_a_server_in_trouble_loses_and_doubles_nothing(server: Server, kind: str) -> None:
    """Four writers, with a restart, a kill, a cut COMMIT, no connections, and failed transactions:
    one outcome for each key (F8)."""
    assert database.trial(server, kind, seed=7) == []


def test_who_lost_the_lease_is_ended_and_refused(postgres: Server) -> None:
    """The host is stopped, killed, or cut off. Its agent has ended before the takeover, and no
    later write is stored. In the last case only the fence ensures that (F10)."""
    with ThreadPoolExecutor(len(holders.KINDS)) as pool:
        wrong = list(pool.map(lambda kind: holders.trial(postgres, kind, seed=7), holders.KINDS))
    assert wrong == [[] for _ in holders.KINDS]
