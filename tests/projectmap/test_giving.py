"""Which prompts get the project map."""

from __future__ import annotations

import pytest

from perdure.engine.attempt.project_map import is_due
from perdure.model import Continuation, MapWhen, Start

FRESH, RESUME, REBUILD, FORK = (
    Continuation(kind=kind, session_id="a")
    for kind in (Start.FRESH, Start.RESUME, Start.REBUILD, Start.FORK)
)
AFTER_LOSS = Continuation(kind=Start.FRESH, lost_session_id="gone")


@pytest.mark.parametrize(
    ("when", "sessions", "due"),
    [
        (MapWhen.OFF, True, ()),
        (MapWhen.OFF, False, ()),
        (MapWhen.FALLBACK, True, (REBUILD, AFTER_LOSS)),
        (MapWhen.FALLBACK, False, (FRESH, REBUILD, AFTER_LOSS)),
        (MapWhen.FIRST, True, (FRESH, REBUILD, AFTER_LOSS)),
        (MapWhen.ALWAYS, True, (FRESH, RESUME, REBUILD, FORK, AFTER_LOSS)),
    ],
)
def test_who_is_given_the_map(when: MapWhen, sessions: bool, due: tuple[Continuation, ...]) -> None:
    """For each setting and kind of agent, the given continuations get the map, and no others do. An
    attempt that does not start gets no map."""
    assert (
        tuple(
            each
            for each in (FRESH, RESUME, REBUILD, FORK, AFTER_LOSS)
            if is_due(when, each, sessions=sessions)
        )
        == due
    )
    assert not any(
        is_due(when, Continuation(kind=kind), sessions=sessions)
        for kind in (Start.WAIT, Start.REFUSE)
    )
