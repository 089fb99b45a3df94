"""The store on PostgreSQL, for several hosts: the same `SqlStore`, over `database.Postgres` instead
of `sqlite.Sqlite`.

The rooms: `database` (transactions, and what a lost connection left behind), `pool` (connections),
`schema` (migrations), `translation` (SQL of SQLite as SQL of PostgreSQL), `errors` (errors as
sentences). Needs psycopg 3, the extra `postgresql`.

Every public method of the store is one transaction, so a method whose transaction could not be
stored, and certainly was not, is simply called again: for `PATIENCE_S`, then the sentence comes
out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from perdure.errors import StoreError
from perdure.model import NOWHERE, Host
from perdure.store.postgres.database import PATIENCE_S, Postgres
from perdure.store.postgres.errors import Again
from perdure.store.postgres.pool import ConnectionPool
from perdure.store.postgres.schema import migrate
from perdure.store.sql import SqlStore

if TYPE_CHECKING:
    from perdure.protocols import Observer

OPENING_S = 5.0
"""A server that is just being started is waited for so long."""

P = ParamSpec("P")
R = TypeVar("R")


class PostgresStore(SqlStore):
    """A `SqlStore` that outlives the restarts of its server."""


def again(method: Callable[Concatenate[SqlStore, P], R]) -> Callable[Concatenate[SqlStore, P], R]:
    """A method that is called again while its transaction was not stored. Raises StoreError when
    the patience is over."""

    @wraps(method)
    def tried(store: SqlStore, *args: P.args, **values: P.kwargs) -> R:
        deadline, pause = time.monotonic() + PATIENCE_S, 0.02
        while True:
            try:
                return method(store, *args, **values)
            except Again as error:
                if time.monotonic() > deadline:
                    raise StoreError(str(error), error.hint) from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 1.0)

    # `wraps` forgets that the first argument may be named.
    return tried  # type: ignore[return-value]


for _name in dir(SqlStore):
    if not _name.startswith("_") and _name not in ("close", "problems"):
        setattr(PostgresStore, _name, again(getattr(SqlStore, _name)))


def open_store(
    url: str, *, read_only: bool = False, observers: Sequence[Observer] = (), host: Host = NOWHERE
) -> PostgresStore:
    """The store in a database of PostgreSQL 14 or later; its tables are made, or brought up to
    date, where needed. Raises StoreError."""
    database = Postgres(ConnectionPool(url), read_only=read_only)
    try:
        deadline = time.monotonic() + OPENING_S
        while True:
            try:
                migrate(database)
                return PostgresStore(database, observers, host)
            except Again as error:
                if time.monotonic() > deadline:
                    raise StoreError(str(error), error.hint) from error
            time.sleep(0.1)
    except BaseException:
        database.close()
        raise
