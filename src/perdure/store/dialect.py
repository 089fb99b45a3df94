"""The interface between the store and a database, and the store's statements. `sqlite` and
`postgres` implement the interface.

In both, a cursor accepts the statements of `queries.sql` unchanged, and returns rows with columns
by name. `SQL` has these statements by name: `SQL["claim_next"]`. They are written for SQLite, in
portable SQL. `store.postgres.database` converts the parameters to psycopg's form.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class Database(Protocol):
    """An open database. Threads may share it."""

    place: str
    """Name of the database for messages: a file path, or an address without its password."""

    def now(self) -> int:
        """Return the time by the database's clock, in ms since 1970. Leases depend on this clock
        alone."""
        ...

    def reading(self) -> AbstractContextManager[Any]:
        """Open one snapshot of the database, and yield a cursor that reads it. Writers are not
        blocked. Raises StoreError."""
        ...

    def writing(self, *, claimed: bool = False) -> AbstractContextManager[tuple[Any, int]]:
        """Yield a cursor in one durable transaction, and the time of the transaction in ms.
        Everything is stored when the block ends; nothing is stored if the block raises.

        There is no other writer at the same time, except that several `claimed` transactions may
        run together. Each of these writes only data of the one run that it has claimed. Raises
        StoreError, Conflict.
        """
        ...

    def problems(self) -> list[str]:
        """Return the problems that a quick check finds; empty if there are none."""
        ...

    def close(self) -> None:
        """Close the database. Closing twice is harmless."""
        ...


_MARK = "-- name: "


def load(text: str) -> dict[str, str]:
    """Return the statements of a text by name. The name of a statement is in the comment line `--
    name: x` above it."""
    statements: dict[str, str] = {}
    for part in ("\n" + text).split("\n" + _MARK)[1:]:
        name, _, statement = part.partition("\n")
        statements[name.strip()] = statement.strip()
    return statements


SQL = load((Path(__file__).parent / "queries.sql").read_text(encoding="utf-8"))
