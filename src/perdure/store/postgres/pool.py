"""Connections to PostgreSQL. They are opened on demand and used by one transaction at a time, at
most `MOST` of them.

psycopg_pool is not used, because it reports "timed out after 30 s" for a wrong password. It also
starts threads, which is too slow for a command of 100 ms.

`sentence` and `unreachable` turn PostgreSQL's errors into sentences without passwords. They also
decide after which errors a transaction is retried.
"""

from __future__ import annotations

import re
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

from perdure.errors import Conflict, PerdureError, StoreError

HINT = "perdure doctor"
LATER = "check that the server runs (perdure doctor), then try again"

TRANSIENT = ("08", "57P01", "57P02", "57P03", "53300", "40001", "40P01", "25P03", "25006")
"""SQLSTATEs after which a retry of the transaction may succeed: no connection, shutting down,
starting up, too many connections, serialization failure, deadlock, a transaction that was left open
for too long, a standby (postgresql.org/docs/15/errcodes-appendix.html)."""

HOPELESS = re.compile(
    r"password|authentication|no pg_hba\.conf entry|database .* does not exist|role .* (?:does not "
    r"exist|is not permitted)"
    r"|translate host name|invalid (?:port|integer|connection|sslmode)|permission "
    r"denied|certificate",
    re.IGNORECASE,
)
"""Messages of the server (or libpq) after which a retry is useless. If the server's messages are in
another language, they are not recognized, and the error is reported only after all retries."""


class TransactionNotStored(StoreError):
    """Raised if nothing was stored and the whole transaction may be retried. If no time is left for
    a retry, a StoreError with the same message is raised instead."""


def place_of(url: str) -> str:
    """Return the address of the database without password and options, for messages. Raises
    StoreError for an invalid address."""
    try:
        parts = conninfo.conninfo_to_dict(url)
    except psycopg.Error as error:
        raise StoreError(
            "The address of the database cannot be read",
            "expected postgresql://USER@HOST:PORT/NAME",
        ) from error
    user = f"{parts['user']}@" if parts.get("user") else ""
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"postgresql://{user}{parts.get('host') or ''}{port}/{parts.get('dbname') or ''}"


def sentence(error: psycopg.Error, place: str, *, lost: bool) -> PerdureError:
    """Return the perdure error for an error of psycopg. If `lost` is true, the connection was lost
    too, and it is certain that nothing was stored."""
    state, said = error.sqlstate or "", _first_line(error)
    if state == "23505":
        return Conflict(f"Another process has already stored the same record: {said}", "perdure ls")
    if state.startswith("23"):
        return StoreError(
            f"The database {place} refused a change that violates a constraint: {said}",
            transient=False,
        )
    if state == "53300":
        return TransactionNotStored(
            f"The database {place} accepts no more connections: {said}",
            "raise max_connections there, or run fewer pools",
        )
    if state in ("40001", "40P01"):
        return TransactionNotStored(
            f"Concurrent writes to the database {place} conflicted too often: {said}",
            "try again",
        )
    if state == "25006":
        return TransactionNotStored(
            f"The database {place} can only be read: {said}",
            "name the primary server, or set target_session_attrs=any",
        )
    if lost or state.startswith(TRANSIENT):
        return TransactionNotStored(f"The database {place} does not answer: {said}", LATER)
    if state == "55P03":
        return StoreError(
            f"Another process has held the database {place} for more than 30 s",
            "end it, then try again",
        )
    if state == "57014":
        return StoreError(f"The database {place} took too long and was interrupted: {said}", HINT)
    if state in ("53100", "53200"):
        return StoreError(
            f"The database {place} has no space left: {said}; nothing was stored, and existing "
            f"data is kept",
            "free some space there",
        )
    if state.startswith(("28", "42501", "3D")):
        return StoreError(
            f"The database {place} does not allow this user to do that: {said}",
            HINT,
            transient=False,
        )
    return StoreError(f"The database {place} cannot be used: {said}", HINT)


def unreachable(error: psycopg.Error, place: str) -> StoreError:
    """Return the error for a failed attempt to connect. It is a `TransactionNotStored` if a retry
    may succeed."""
    said = _first_line(error)
    if isinstance(error, psycopg.OperationalError) and not HOPELESS.search(said):
        return TransactionNotStored(f"The database {place} cannot be reached: {said}", LATER)
    return StoreError(
        f"The database {place} cannot be opened: {said}",
        "check the address; the password comes from PGPASSWORD or ~/.pgpass",
    )


def _first_line(error: psycopg.Error) -> str:
    said = (error.diag.message_primary or str(error) or type(error).__name__).strip()
    return re.sub(r"^connection failed: ", "", said.splitlines()[0]).rstrip(".")


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
