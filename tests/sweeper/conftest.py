from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeper.ground import Ground, make_ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = make_ground(tmp_path)
    yield made
    made.engine.store.close()
