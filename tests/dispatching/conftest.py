"""A fixture that makes offices (see `office.py`) for a test and closes them after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.model.forge.rules import Rule
from tests.dispatching.office import Office, make_office


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    """Make an office; without rules, one with the agent `dev`."""
    made: list[Office] = []

    def build(*rules: Rule) -> Office:
        made.append(make_office(tmp_path, rules))
        return made[-1]

    yield build
    for each in made:
        each.engine.store.close()


@pytest.fixture
def office(make: Callable[..., Office]) -> Office:
    return make()
