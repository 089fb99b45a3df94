"""One running `perdure serve` for tests that only send requests to it, and further servers for
tests that stop them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.web.serving import SOURCES, Serving


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    found = Serving(tmp_path_factory.mktemp("serve")).start()
    yield found
    found.stop()


@pytest.fixture
def serves(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Make a server that is not started yet. At the end of the test it is stopped."""
    made: list[Serving] = []

    def make(config: str = SOURCES, **environ: str) -> Serving:
        made.append(Serving(tmp_path, config, **environ))
        return made[-1]

    yield make
    for each in made:
        each.kill()
