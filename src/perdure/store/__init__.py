"""Stores runs, conversations and the journal. The entry point is `open`, which `perdure.wiring`
calls.

The modules: `sql` (attempts and instructions), `writes` (checkpoints, removals, resets), `fence`
(rules for every write), `reads` (queries), `queries.sql` (every statement by name), `rows`
(conversion between rows and model objects), `dialect` (the interface to a database), `sqlite` and
`postgres` (the two databases), `migrate` and `migrations/` (the schema). Importing this package is
cheap, because everything else is imported by the first `open`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # Importing typing would slow down `perdure ls` noticeably.
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from perdure.host.volumes import Ballast
    from perdure.model import Host
    from perdure.protocols import Observer
    from perdure.store.sql import SqlStore


def open(  # noqa: A001 - used as stores.open
    url_or_path: str | Path,
    *,
    read_only: bool = False,
    observers: Sequence[Observer] = (),
    allow_network: bool = False,
    ballast: Ballast | None = None,
    host: Host | None = None,
) -> SqlStore:
    """Open and return the store at a file path, a `sqlite:///absolute/path` URL or a
    `postgresql://` URL. The database is created or upgraded if needed.

    A store that is opened with `read_only` accepts no writes. Opening it still upgrades an older
    schema, and creates the tables of an empty PostgreSQL database. If there is no file at the path,
    the result is an empty store, and no file is made. `observers` are called with each committed
    Record. `host` identifies this machine among those that share the database. `allow_network`
    permits a database file on a network file system. It is meant for users who know that their file
    system has reliable locks. Raises StoreError with one sentence if the database is not writable,
    full, damaged, unreachable, or from a newer perdure.
    """
    from pathlib import Path

    from perdure.errors import StoreError

    place = str(url_or_path)
    scheme, separator, rest = place.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres(place, read_only, observers, host)
    from perdure.store.sql import SqlStore
    from perdure.store.sqlite import connect

    if separator and scheme != "sqlite":
        raise StoreError(
            f"There is no store for {scheme}:// addresses",
            "name a file, sqlite:///absolute/path, or postgresql://host/name",
        )
    path = Path(rest if separator else place)
    return SqlStore(
        connect(path, read_only=read_only, allow_network=allow_network, ballast=ballast), observers
    )


def _postgres(
    url: str, read_only: bool, observers: Sequence[Observer], host: Host | None
) -> SqlStore:
    from perdure.errors import StoreError
    from perdure.model import UNSHARED_HOST

    try:
        from perdure.store.postgres import open_store
    except ModuleNotFoundError as error:
        from perdure.host.extras import install_command

        raise StoreError(
            "A PostgreSQL database needs psycopg, which is not installed",
            install_command("postgresql"),
        ) from error
    return open_store(url, read_only=read_only, observers=observers, host=host or UNSHARED_HOST)


def examine(url: str) -> Iterator[tuple[str, str]]:
    """Check the database at a `postgresql://` URL for `perdure doctor`. Yields one finding per
    check: its state (`ok`, `warn` or `bad`) and a sentence."""
    from contextlib import closing

    from perdure.errors import StoreError

    try:
        with closing(open(url)) as store:
            from perdure.store.postgres.schema import findings

            yield from findings(store)
    except StoreError as error:
        yield "bad", f"{error}; {error.hint}" if error.hint else str(error)


def sqlite_warning() -> str:
    """Return a warning sentence if the installed SQLite has a known bug that affects perdure,
    otherwise an empty string."""
    from perdure.store.sqlite import sqlite_warning

    return sqlite_warning()
