"""Both stores keep every promise of their protocols: the same public suite runs on SQLite and on
PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from perdure import store as stores
from perdure.model.events import AgentEvent
from perdure.store.dialect import SQL
from perdure.store.sql import SqlStore
from perdure.testing.stores import StoreConformance
from tests.servers.postgres import Server


def test_the_agents_events_are_told_from_perdures() -> None:
    """The query of `run_events` leaves out the kinds of `AgentEvent`, and no others."""
    listed = SQL["run_events"].partition("NOT IN (")[2].partition(")")[0]
    kinds = [each.__struct_config__.tag for each in get_args(AgentEvent)]
    assert [each.strip().strip("'") for each in listed.split(",")] == kinds


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
