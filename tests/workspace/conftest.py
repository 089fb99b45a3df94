from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than the test's own."""
    own = tmp_path.stat().st_dev
    other = next(path for path in ("/dev/shm", "/var/tmp") if Path(path).stat().st_dev != own)
    with tempfile.TemporaryDirectory(dir=other) as place:
        yield Path(place)
