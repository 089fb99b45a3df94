"""Turns PostgreSQL's errors into sentences without passwords, and decides after which errors a
transaction is retried."""

from __future__ import annotations

import re

import psycopg
from psycopg import conninfo

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
