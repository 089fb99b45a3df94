from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.finding import on_another_file_system
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Make a directory on another file system than the test's own."""
    with tempfile.TemporaryDirectory(dir=on_another_file_system(tmp_path)) as place:
        yield Path(place)
