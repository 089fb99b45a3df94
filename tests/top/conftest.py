"""A fixture that gives each board its own store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from perdure import store as stores
from perdure.store.sql import SqlStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(stores.open(tmp_path / "perdure.db")) as found:
        yield found
