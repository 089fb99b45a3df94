"""An engine with its own store, and the result of a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from perdure.config.files import load
from perdure.engine.attempt import Engine
from perdure.wiring import open_engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PERDURE_DISK_BALLAST": "0"}
    found = open_engine(load(environ, tmp_path), environ)
    with closing(found.store):
        yield found
