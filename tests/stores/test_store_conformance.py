"""Both stores keep every promise of their protocols: the same public suite runs on SQLite and on
PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure import store as stores
from perdure.store.sql import SqlStore
from perdure.testing.stores import StoreConformance
from tests.servers.postgres import Server


class TestSqlite(StoreConformance):
    """The public suite, on a real file."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SqlStore]:
        store = stores.open(tmp_path / "state" / "perdure.db")
        yield store
        assert store.problems() == []
        store.close()


class TestPostgres(StoreConformance):
    """The public suite, on a real server."""

    @pytest.fixture
    def store(self, postgres: Server) -> Iterator[SqlStore]:
        store = stores.open(postgres.database(migrated=True))
        yield store
        assert store.problems() == []
        store.close()
