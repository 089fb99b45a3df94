"""Where runs, conversations and the journal are kept. `open` is the door; `perdure.cli.compose` is who calls it.

The rooms: `sql` (attempts and instructions), `keeping` (checkpoints, removals, resets), `rules` (what holds for every write),
`reading` (what is asked), `queries.sql` (every statement by name),
`rows` (rows to nouns and back), `dialect` (what a database is to them), `sqlite` and `postgres` (the two), `migrate` and `migrations/`
(the schema), `disk` (where a database file may lie). Importing this package costs nothing: everything comes with the first `open`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is too dear for `perdure ls`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from perdure.protocols import Observer
    from perdure.stores.sql import SqlStore
    from perdure.volumes import Ballast


def open(  # noqa: A001 - read as stores.open
    url_or_path: str | Path,
    *,
    read_only: bool = False,
    observers: Sequence[Observer] = (),
    allow_network: bool = False,
    ballast: Ballast | None = None,
) -> SqlStore:
    """The store at a path, a `sqlite:///absolute/path` or a `postgresql://` URL; made, or brought up to date, where needed.

    `read_only` changes nothing, and shows an empty store where there is none. `observers` are called with each committed
    Record. `allow_network` lets the database lie on a network file system, for people who know theirs to be safe.
    Raises StoreError with one sentence: not writable, full, damaged, of a newer perdure, on a network file system.
    """
    from pathlib import Path

    from perdure.errors import StoreError

    place = str(url_or_path)
    scheme, separator, rest = place.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres(place, read_only, observers)
    from perdure.stores.sql import SqlStore
    from perdure.stores.sqlite import connect

    if separator and scheme != "sqlite":
        raise StoreError(f"There is no store for {scheme}:// addresses", "name a file, sqlite:///absolute/path, or postgresql://host/name")
    path = Path(rest if separator else place)
    return SqlStore(connect(path, read_only=read_only, allow_network=allow_network, ballast=ballast), observers)


def _postgres(url: str, read_only: bool, observers: Sequence[Observer]) -> SqlStore:
    from perdure.errors import StoreError

    try:
        from perdure.stores.postgres import open_store
    except ModuleNotFoundError as error:
        raise StoreError("A PostgreSQL database needs psycopg, which is not installed", "pip install 'perdure[postgresql]'") from error
    return open_store(url, read_only=read_only, observers=observers)


def sqlite_warning() -> str:
    """One sentence if the SQLite in use has a known bug that a person should know of, else empty."""
    from perdure.stores.disk import sqlite_warning

    return sqlite_warning()
