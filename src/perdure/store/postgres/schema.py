"""Upgrades the schema on PostgreSQL: the same numbered scripts as on SQLite, all in one
transaction.

In PostgreSQL too, DDL is part of the transaction. After a kill at any point, the database has
either the previous schema or the newest one. If several processes start at once, the first one does
the upgrade, under the lock that all writers share, and the others wait.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg.rows import DictRow

from perdure.errors import StoreError
from perdure.store.migrate import SCRIPTS, newest, numbered, statements
from perdure.store.postgres.database import LOCK, Postgres
from perdure.store.postgres.errors import sentence
from perdure.store.postgres.translation import migration

VERSIONS = """
CREATE TABLE perdure_schema (version BIGINT NOT NULL);
INSERT INTO perdure_schema VALUES (0);
CREATE TABLE perdure_writers (id TEXT PRIMARY KEY, mark BIGINT NOT NULL, at BIGINT NOT NULL)
"""


def version_of(connection: psycopg.Connection[DictRow], place: str, scripts: Path = SCRIPTS) -> int:
    """Return the schema version of a database; 0 for an empty one. Raises StoreError for a database
    from a newer perdure or from another program."""
    row = connection.execute(
        "SELECT to_regclass('perdure_schema') IS NOT NULL AS there,"
        " EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema()) AS any"
    ).fetchone()
    assert row is not None
    if not row["there"]:
        if row["any"]:
            raise StoreError(
                f"{place} is a database of another program",
                "create a database of its own: createdb perdure",
            )
        return 0
    found = connection.execute("SELECT version FROM perdure_schema").fetchone()
    version = int(found["version"]) if found else 0
    if version > newest(scripts):
        raise StoreError(
            f"{place} was written by a newer perdure (schema {version}; this one knows "
            f"{newest(scripts)})",
            "upgrade perdure",
        )
    return version


def migrate(database: Postgres, scripts: Path = SCRIPTS) -> None:
    """Upgrade the schema. An error leaves the database unchanged. Raises StoreError."""
    with database.lines.lent() as line:
        connection, place = line.connection, database.place
        try:
            if version_of(connection, place, scripts) == newest(scripts):
                return
            with connection.transaction():
                connection.execute(
                    "SET LOCAL statement_timeout = 0; SET LOCAL "
                    "idle_in_transaction_session_timeout = 0"
                )
                connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
                version = version_of(connection, place, scripts)
                if not version:
                    connection.execute(VERSIONS)
                for number, script in numbered(scripts):
                    for statement in (
                        statements(script.read_text(encoding="utf-8")) if version < number else ()
                    ):
                        for each in migration(statement):
                            connection.execute(each.encode())
                connection.execute("UPDATE perdure_schema SET version = %s", (newest(scripts),))
        except psycopg.Error as error:
            raise sentence(error, place, lost=connection.broken or connection.closed) from error
