"""Connections to PostgreSQL. They are opened on demand and used by one transaction at a time, at
most `MOST` of them.

psycopg_pool is not used, because it reports "timed out after 30 s" for a wrong password. It also
starts threads, which is too slow for a command of 100 ms.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from msgspec import Struct, field
from psycopg import conninfo
from psycopg.rows import DictRow, dict_row

from perdure.errors import StoreError
from perdure.store.postgres.errors import TransactionNotStored, place_of, unreachable

MOST = 5
WAIT_S = 30.0
"""Maximum time in seconds that a transaction waits for a free connection. SETTINGS sets the same
limit for locks in the database."""

DEFAULTS: dict[str, Any] = {
    "application_name": "perdure",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""Parameters for libpq that apply unless the address sets others. With them, a peer that disappears
silently is noticed within 15 s (tcp(7))."""

SETTINGS = """
SET idle_in_transaction_session_timeout = '10s';
SET lock_timeout = '30s';
SET statement_timeout = '60s';
SET tcp_user_timeout = '15s';
SET tcp_keepalives_idle = '5s';
SET tcp_keepalives_interval = '3s';
SET tcp_keepalives_count = 3;
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off'
"""
"""Statement with the settings of every connection. A process that is stopped or disconnected in the
middle of a transaction blocks the others for at most 10 s."""


class PooledConnection(Struct, eq=False):
    """A connection to PostgreSQL. Its commits are recorded in `perdure_writers` under its `id` (see
    `database`)."""

    connection: psycopg.Connection[DictRow]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    mark: int = 0

    def close(self) -> None:
        with suppress(psycopg.Error):
            self.connection.close()


class ConnectionPool:
    """All connections of one store. Threads may share it."""

    def __init__(self, url: str) -> None:
        self.place = place_of(url)
        self._parameters = DEFAULTS | conninfo.conninfo_to_dict(url)
        self._idle: list[PooledConnection] = []
        self._free = threading.BoundedSemaphore(MOST)
        self._turn = threading.Lock()
        self._closed = False

    @contextmanager
    def lent(self) -> Iterator[PooledConnection]:
        """Lend a connection for one transaction. The connection is closed afterwards if it is still
        in a transaction. Raises StoreError, TransactionNotStored."""
        if not self._free.acquire(timeout=WAIT_S):
            raise StoreError(
                f"All {MOST} connections to {self.place} have been in use for more than "
                f"{WAIT_S:.0f} s",
                "perdure doctor",
            )
        try:
            line = self._take() or self.made()
            try:
                yield line
            finally:
                self._put(line)
        finally:
            self._free.release()

    def made(self) -> PooledConnection:
        """Return a new connection. Raises StoreError, TransactionNotStored."""
        if self._closed:
            raise StoreError(f"The database {self.place} was closed")
        connection = None
        try:
            connection = psycopg.connect(
                **self._parameters, autocommit=True, row_factory=dict_row, prepare_threshold=None
            )
            connection.execute(SETTINGS)
        except psycopg.Error as error:
            if connection is not None:
                connection.close()
            raise unreachable(error, self.place) from error
        return PooledConnection(connection)

    def made_in(self, patience_s: float) -> PooledConnection:
        """Return a new connection. After an error that may be temporary, try again for up to
        `patience_s` seconds. Raises StoreError."""
        deadline, pause = time.monotonic() + patience_s, 0.05
        while True:
            try:
                return self.made()
            except TransactionNotStored as again:
                if time.monotonic() + pause > deadline:
                    raise StoreError(str(again), again.hint) from again
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def forget(self) -> None:
        """Close all idle connections. Called after one connection was lost, because the others may
        be lost too."""
        with self._turn:
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def close(self) -> None:
        """Close all connections, and delete their rows in `perdure_writers`."""
        with self._turn:
            self._closed = True
            idle, self._idle = self._idle, []
        for number, line in enumerate(idle):
            with suppress(psycopg.Error):
                if not number:
                    line.connection.execute(
                        "DELETE FROM perdure_writers WHERE id = ANY(%s)",
                        ([each.id for each in idle],),
                    )
            line.close()

    def _take(self) -> PooledConnection | None:
        with self._turn:
            if self._idle:
                return self._idle.pop()
            return None

    def _put(self, line: PooledConnection) -> None:
        idle = line.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._turn:
            if idle and not self._closed:
                self._idle.append(line)
                return
        line.close()
