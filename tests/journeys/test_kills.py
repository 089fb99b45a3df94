"""A sample of the random kills; `make kills N=200` makes as many as wanted."""

from __future__ import annotations

import pytest

from tests.journeys.kills import table, trial

pytestmark = pytest.mark.journey


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_point(agent: str, seed: int) -> None:
    """Whatever is killed whenever: no false `native`, no silent fresh start, no orphan, no lost file."""
    result = trial(1_000 + seed, agent)
    assert not result.wrong, table([result])
