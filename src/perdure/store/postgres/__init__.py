"""The store on PostgreSQL, for several hosts: the same `SqlStore`, with `database.Postgres` instead
of `sqlite.Sqlite`.

The modules: `database` (transactions, how they end after a lost connection, and the translation of
SQLite's SQL), `pool` (connections, and errors as sentences), `schema` (migrations, and checks for
`perdure doctor`). Needs psycopg 3, the extra `postgresql`.

Every public method of the store is one transaction. If it is certain that the transaction was not
stored, the method is called again for up to `PATIENCE_S` seconds. Then the error is raised.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from perdure.errors import StoreError
from perdure.model import UNSHARED_HOST, Host
from perdure.store.postgres.database import PATIENCE_S, Postgres
from perdure.store.postgres.pool import ConnectionPool, TransactionNotStored
from perdure.store.postgres.schema import migrate
from perdure.store.sql import SqlStore

if TYPE_CHECKING:
    from perdure.protocols import Observer

OPENING_S = 5.0
"""Maximum wait for a server that is still starting, in seconds."""

P = ParamSpec("P")
R = TypeVar("R")


class PostgresStore(SqlStore):
    """A `SqlStore` that keeps working across restarts of the PostgreSQL server."""


def retry_transaction(
    method: Callable[Concatenate[SqlStore, P], R],
) -> Callable[Concatenate[SqlStore, P], R]:
    """Wrap a method of the store. If it is certain that its transaction was not stored, the wrapper
    calls the method again. After `PATIENCE_S` seconds it raises StoreError."""

    @wraps(method)
    def tried(store: SqlStore, *args: P.args, **values: P.kwargs) -> R:
        deadline, pause = time.monotonic() + PATIENCE_S, 0.02
        while True:
            try:
                return method(store, *args, **values)
            except TransactionNotStored as error:
                if time.monotonic() > deadline:
                    raise StoreError(str(error), error.hint) from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 1.0)

    # mypy: the type of `wraps` does not say that the first argument may be passed by name.
    return tried  # type: ignore[return-value]


for _name in dir(SqlStore):
    if not _name.startswith("_") and _name not in ("close", "problems"):
        setattr(PostgresStore, _name, retry_transaction(getattr(SqlStore, _name)))


def open_store(
    url: str,
    *,
    read_only: bool = False,
    observers: Sequence[Observer] = (),
    host: Host = UNSHARED_HOST,
) -> PostgresStore:
    """Open and return the store in a database of PostgreSQL 14 or later. Creates or upgrades its
    tables if needed. Raises StoreError."""
    database = Postgres(ConnectionPool(url), read_only=read_only)
    try:
        deadline = time.monotonic() + OPENING_S
        while True:
            try:
                migrate(database)
                return PostgresStore(database, observers, host)
            except TransactionNotStored as error:
                if time.monotonic() > deadline:
                    raise StoreError(str(error), error.hint) from error
            time.sleep(0.1)
    except BaseException:
        database.close()
        raise
