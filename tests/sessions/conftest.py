"""One Redis for all tests of a worker. A test that kills or stalls Redis starts another one. The
keys of different stores differ, so they never collide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.redis import RedisServer, server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with server() as made:
        yield made
