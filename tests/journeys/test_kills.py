"""A sample of the random kills; `make kills N=200` makes as many as wanted."""

from __future__ import annotations

import pytest

from tests.journeys.kills import KEPT, table, trial

pytestmark = pytest.mark.journey


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_point(agent: str, seed: int) -> None:
    """Whatever is killed whenever: no false `native`, no silent fresh start, no orphan, no lost
    file."""
    result = trial(1_000 + seed, agent)
    assert not result.wrong, table([result])


@pytest.mark.parametrize("agent", KEPT)
@pytest.mark.parametrize("seed", range(3))
def test_killed_while_an_agent_is_kept(agent: str, seed: int) -> None:
    """The same, for an agent that one program keeps between two turns: killed in one of them,
    between them, or while it waits."""
    result = trial(2_000 + seed, agent, warm=True)
    assert not result.wrong, table([result])
