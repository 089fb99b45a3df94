"""Stages for the journeys."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage


@pytest.fixture(params=["claude", "codex", "gemini", "opencode"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return the name of the CLI. Every journey is made with each CLI."""
    return str(request.param)


@pytest.fixture
def stage(agent: str) -> Iterator[Callable[..., Stage]]:
    """Make a stage for a script. At the end stop its processes and remove it. The paths are short,
    because the path of a socket has at most 108 bytes."""
    made: list[Stage] = []
    directory = Path(tempfile.mkdtemp(prefix="pj"))

    def make(script: str, **settings: object) -> Stage:
        rehearsal = Rehearsal(script).start()
        made.append(Stage(directory, agent, rehearsal, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)
