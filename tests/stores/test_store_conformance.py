"""The SQLite store keeps every promise of its protocols."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure import stores
from perdure.stores.sql import SqlStore
from perdure.testing.stores import StoreConformance


class TestSqlite(StoreConformance):
    """The public suite, on a real file."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SqlStore]:
        store = stores.open(tmp_path / "state" / "perdure.db")
        yield store
        assert store.problems() == []
        store.close()
