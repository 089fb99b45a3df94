"""A sample of `make redis-faults`: F9 of the fault matrix."""

from __future__ import annotations

import pytest

from tests.sessions.losing import FAULTS, point


@pytest.mark.parametrize("fault", FAULTS)
def test_losing_redis_costs_lookups_alone(fault: str) -> None:
    """Redis is restarted, emptied, expired, evicted and stalled. No session is forgotten or live
    twice, and afterwards all caches agree with the database."""
    found = point(4711, fault, 0.6)
    assert not found.wrong and found.lookups and found.from_cache and found.writes
    assert len(found.told) <= 3 * 2, found.told
