"""Runs the store's transactions on PostgreSQL, and determines after a lost connection whether a
transaction was stored.

A write first takes an advisory lock that all of perdure's writers use. An ordinary write takes it
exclusively. A write under a claim shares it with claimed writes to other runs, and `require_claim`
locks the run's own row. So the data that a transaction has read remains unchanged until it commits,
as on SQLite, without serialization failures. If PostgreSQL nevertheless reports such a failure, the
transaction is repeated (`TransactionNotStored`).

If the answer to a COMMIT never arrives, the change may be stored or not. Each connection therefore
has a row in `perdure_writers` with the number of its last transaction, written in that transaction.
After a lost connection, a new connection takes the lock exclusively, which waits until the old
transaction has ended, and reads the row. The number shows for certain whether the transaction was
stored. (`pg_xact_status` does not: after a crash, a transaction id that never reached the disk is
used again.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import DictRow

from perdure.errors import StoreError, UsageError
from perdure.store.postgres.errors import sentence
from perdure.store.postgres.pool import ConnectionPool, PooledConnection
from perdure.store.postgres.translation import statements
from perdure.store.queries import SQL

PATIENCE_S = 30.0
"""Time in seconds after which a failed transaction is not retried any more."""
CERTAIN_S = 120.0
"""Maximum time in seconds to find out, after a lost connection, whether a COMMIT was stored. After
that the result remains unknown."""

LOCK = 0x70726472
"""Key of the advisory lock that all writers of this database use ("prdr")."""

NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now"
MARK = """
INSERT INTO perdure_writers (id, mark, at) VALUES (%(id)s, %(mark)s, %(now)s)
ON CONFLICT (id) DO UPDATE SET mark = excluded.mark, at = excluded.at
"""
OLD_MS = 30 * 86_400_000
"""Age in milliseconds at which a row of `perdure_writers` is deleted. Such rows remain from
connections that were not closed properly."""

STATEMENTS = {text: statement.encode() for text, statement in statements(SQL).items()}


class Cursor:
    """Executes the store's statements, which are written for SQLite. Text in PostgreSQL cannot
    contain NUL, so NUL is replaced by its symbol, U+2400."""

    def __init__(self, connection: psycopg.Connection[DictRow]) -> None:
        self._connection = connection

    def execute(
        self, statement: str, values: Mapping[str, Any] | None = None
    ) -> psycopg.Cursor[DictRow]:
        clean = {}
        for name, value in (values or {}).items():
            if isinstance(value, str) and "\0" in value:
                clean[name] = value.replace("\0", "\u2400")
            else:
                clean[name] = value
        return self._connection.execute(STATEMENTS[statement], clean)


class Postgres:
    """An open PostgreSQL database. Threads may share it; each transaction has a connection."""

    def __init__(self, lines: ConnectionPool, *, read_only: bool = False) -> None:
        self.lines = lines
        self.place = lines.place
        self.read_only = read_only

    def now(self) -> int:
        """Return the time by the server's clock in ms, which is the same for all hosts."""
        with self.lines.lent() as line, self._in_words(line):
            return _one(line.connection.execute(NOW))

    @contextmanager
    def reading(self) -> Iterator[Cursor]:
        with self.lines.lent() as line, self._in_words(line), self._rolled_back(line):
            line.connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield Cursor(line.connection)
            line.connection.execute("COMMIT")

    @contextmanager
    def writing(self, *, claimed: bool = False) -> Iterator[tuple[Cursor, int]]:
        if self.read_only:
            raise StoreError(f"{self.place} was opened for reading only", transient=False)
        with self.lines.lent() as line, self._in_words(line):
            with self._rolled_back(line):
                if claimed:
                    lock = "pg_advisory_xact_lock_shared"
                else:
                    lock = "pg_advisory_xact_lock"
                line.connection.execute(f"BEGIN; SELECT {lock}({LOCK})")
                now = _one(line.connection.execute(NOW))
                if not line.mark:
                    line.connection.execute(
                        "DELETE FROM perdure_writers WHERE at < %s", (now - OLD_MS,)
                    )
                line.mark += 1
                line.connection.execute(MARK, {"id": line.id, "mark": line.mark, "now": now})
                yield Cursor(line.connection), now
            try:
                line.connection.execute("COMMIT")
            except psycopg.Error:
                if not line.connection.broken and not line.connection.closed:
                    raise
                self.lines.forget()
                if not self._is_stored(line):
                    raise

    def problems(self) -> list[str]:
        """Return the invalid indexes (postgresql.org/docs/15/catalog-pg-index.html) as sentences,
        or the reason why the database cannot be queried."""
        query = (
            "SELECT c.relname AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "WHERE NOT i.indisvalid AND c.relnamespace = current_schema()::regnamespace"
        )
        try:
            with self.lines.lent() as line, self._in_words(line):
                found = []
                for row in line.connection.execute(query).fetchall():
                    found.append(f"the index {row['name']} is not valid")
                return found
        except StoreError as error:
            return [str(error)]

    def close(self) -> None:
        self.lines.close()

    def _is_stored(self, lost: PooledConnection) -> bool:
        """Return whether the last transaction of a lost connection was stored. Raises StoreError if
        that cannot be determined."""
        lost.close()
        deadline = time.monotonic() + CERTAIN_S
        while True:
            try:
                line = self.lines.made_in(max(0.0, deadline - time.monotonic()))
                try:
                    line.connection.execute(f"BEGIN; SELECT pg_advisory_xact_lock({LOCK})")
                    row = line.connection.execute(
                        "SELECT mark FROM perdure_writers WHERE id = %s", (lost.id,)
                    ).fetchone()
                    return row is not None and row["mark"] == lost.mark
                finally:
                    line.close()
            except (psycopg.Error, StoreError) as error:
                if time.monotonic() > deadline or not isinstance(error, psycopg.OperationalError):
                    raise StoreError(
                        f"The connection to {self.place} was lost during a commit: the change may "
                        f"or may not be stored",
                        "perdure show tells which, as soon as the server answers",
                    ) from error

    @contextmanager
    def _rolled_back(self, line: PooledConnection) -> Iterator[None]:
        """Roll back the transaction if the block raises. If the rollback fails too, close the
        connection."""
        try:
            yield
        except BaseException:
            try:
                line.connection.execute("ROLLBACK")
            except psycopg.Error:
                line.close()
            raise

    @contextmanager
    def _in_words(self, line: PooledConnection) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            lost = line.connection.broken or line.connection.closed
            if lost:
                self.lines.forget()
            raise sentence(error, self.place, lost=lost) from error
        except UnicodeEncodeError as error:
            raise UsageError(
                "a text is not valid UTF-8", "check that the prompt is a text file"
            ) from error


def _one(cursor: psycopg.Cursor[DictRow]) -> int:
    row = cursor.fetchone()
    assert row is not None
    return int(row["now"])
