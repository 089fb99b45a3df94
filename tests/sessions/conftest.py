"""One Redis for all tests of a worker. A test that kills or stalls Redis starts its own. Keys of
two stores never meet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.redis import RedisServer, server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with server() as made:
        yield made
