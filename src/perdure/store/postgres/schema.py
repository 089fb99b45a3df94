"""Upgrades the schema on PostgreSQL (`migrate`), and checks a database for `perdure doctor`
(`findings`): version, permissions, durability and clock difference.

The numbered scripts are the same as on SQLite. All of them run in one transaction, because DDL is
part of the transaction in PostgreSQL too. After a kill at any point, the database has either the
previous schema or the newest one. If several processes start at once, the first one does the
upgrade, under the lock that all writers share, and the others wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.rows import DictRow

from perdure.errors import StoreError
from perdure.store.migrate import SCRIPTS, newest, numbered, statements
from perdure.store.postgres.database import LOCK, Postgres, migration
from perdure.store.postgres.pool import sentence
from perdure.store.sql import SqlStore

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


OLDEST = 140_000
"""`server_version_num` of PostgreSQL 14, the oldest version that PostgreSQL still maintains
(postgresql.org/support/versioning, 2026)."""
SKEW_MS = 5_000

QUERY = """
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS number,
       current_setting('fsync') AS fsync, current_setting('full_page_writes') AS pages,
       current_setting('max_connections') AS most,
       current_setting('synchronous_commit') AS sync, pg_is_in_recovery() AS standby,
       has_schema_privilege(current_schema(), 'CREATE') AS may_create,
       has_table_privilege('runs', 'SELECT, INSERT, UPDATE, DELETE') AS may_write
"""


def findings(store: SqlStore) -> Iterator[tuple[str, str]]:
    """Check the database of a store. Yields one finding per check: its state (`ok`, `warn` or
    `bad`) and a sentence. Raises StoreError."""
    database = store._database
    assert isinstance(database, Postgres)
    with database.lines.lent() as line:
        row = line.connection.execute(QUERY).fetchone()
    assert row is not None
    yield "ok", f"{database.place}, PostgreSQL {row['version']}, up to {row['most']} connections"
    if row["number"] < OLDEST:
        yield (
            "warn",
            f"PostgreSQL {row['version']} is no longer maintained; upgrade to 14 or later",
        )
    if row["standby"]:
        yield "bad", "the server is a standby: nothing can be written"
    if not row["may_write"]:
        yield "bad", "this user may not write perdure's tables"
    if not row["may_create"]:
        yield (
            "warn",
            "this user may not create tables: a newer perdure could not migrate the schema",
        )
    if "off" in (row["fsync"], row["pages"]):
        yield (
            "warn",
            "fsync or full_page_writes is off: a power cut of the server may lose or damage "
            "everything",
        )
    before = time.time_ns() // 1_000_000
    there = store.now()
    skew = there - (before + time.time_ns() // 1_000_000) // 2
    if abs(skew) > SKEW_MS:
        way = "ahead" if skew > 0 else "behind"
        yield (
            "warn",
            f"the server's clock is {abs(skew) / 1000:.1f} s {way}; leases use the server's clock",
        )
    for problem in store.problems():
        yield "bad", problem
