"""A sample of `make redispatches`: two lines with the real CLIs and given faults."""

from __future__ import annotations

import pytest

from tests.journeys.redispatches import DATABASES, grounds, line

pytestmark = pytest.mark.journey


@pytest.mark.parametrize(
    ("agent", "database", "faults"),
    [
        ("claude", "sqlite", ("transcript torn", "all lost")),
        ("codex", "postgresql", ("rows lost", "postgresql", "redis")),
    ],
)
def test_a_line_goes_on_or_says_why_not(agent: str, database: str, faults: tuple[str, ...]) -> None:
    """If the transcript or a copy is left, the conversation continues. If neither is left, the
    prompt has a brief and says so. Each lookup of an acknowledged session record finds it."""
    with grounds((database,) if database in DATABASES else ()) as ground:
        found = line(7, agent, database, len(faults), ground, faults)
    assert not found.wrong
    verdicts = [dispatch.verdict for dispatch in found.dispatches]
    assert all(
        verdict in ("native", "repaired") or fault == "all lost"
        for verdict, fault in zip(verdicts, faults, strict=True)
    ), verdicts
