"""What a database offers to the store that lies over it: four doors and a name. `sqlite` and
`postgres` are the two there are.

A cursor takes the statements of `queries.sql` as they stand there, and gives rows by column name,
in both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol


class Database(Protocol):
    """An open database. Threads may share it."""

    place: str
    """What it is called in sentences: a path, or an address without its password."""

    def now(self) -> int:
        """The database's clock, in ms since 1970. Leases end by this clock and by no other."""
        ...

    def reading(self) -> AbstractContextManager[Any]:
        """A cursor on one view of the database as it is now; writers are not held up. Raises
        StoreError."""
        ...

    def writing(self, *, claimed: bool = False) -> AbstractContextManager[tuple[Any, int]]:
        """A cursor in one durable transaction, and the time in it: all is stored when the block
        ends, or nothing.

        Nobody else writes meanwhile, unless both are `claimed`: then each has the one run that it
        holds to itself. Raises StoreError, Conflict."""
        ...

    def problems(self) -> list[str]:
        """What a quick check finds wrong; empty if all is well."""
        ...

    def close(self) -> None:
        """Lets go of it. Twice is harmless."""
        ...
