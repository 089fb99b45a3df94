"""Checks a PostgreSQL database for `perdure doctor`: version, permissions, durability and clock
difference."""

from __future__ import annotations

import time
from collections.abc import Iterator

from perdure.store.postgres.database import Postgres
from perdure.store.sql import SqlStore

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
