"""Where runs, conversations and the journal are kept. `open` is the door; `perdure.cli.compose` is
who calls it.

The rooms: `sql` (attempts and instructions), `retention` (checkpoints, removals, resets), `fence`
(what holds for every write), `reads` (what is asked), `queries.sql` (every statement by name),
`rows` (rows to nouns and back), `dialect` (what a database is to them), `sqlite` and `postgres`
(the two), `migrate` and `migrations/` (the schema), `disk` (where a database file may lie).
Importing this package costs nothing: everything comes with the first `open`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is too dear for `perdure ls`
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from perdure.host.volumes import Ballast
    from perdure.model import Host
    from perdure.protocols import Observer
    from perdure.store.sql import SqlStore


def open(  # noqa: A001 - read as stores.open
    url_or_path: str | Path,
    *,
    read_only: bool = False,
    observers: Sequence[Observer] = (),
    allow_network: bool = False,
    ballast: Ballast | None = None,
    host: Host | None = None,
) -> SqlStore:
    """The store at a path, a `sqlite:///absolute/path` or a `postgresql://` URL; made, or brought
    up to date, where needed.

    `read_only` changes nothing, and shows an empty store where there is none. `observers` are
    called with each committed Record. `host` is who shares the database. `allow_network` lets the
    database file lie on a network file system, for people who know theirs to be safe. Raises
    StoreError with one sentence: not writable, full, damaged, out of reach, of a newer perdure.
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
    from perdure.model import NOWHERE

    try:
        from perdure.store.postgres import open_store
    except ModuleNotFoundError as error:
        from perdure.host.extras import install_command

        raise StoreError(
            "A PostgreSQL database needs psycopg, which is not installed",
            install_command("postgresql"),
        ) from error
    return open_store(url, read_only=read_only, observers=observers, host=host or NOWHERE)


def examine(url: str) -> Iterator[tuple[str, str]]:
    """What `perdure doctor` says of a database at a `postgresql://` URL: findings as (`ok`, `warn`
    or `bad`, a sentence)."""
    from contextlib import closing

    from perdure.errors import StoreError

    try:
        with closing(open(url)) as store:
            from perdure.store.postgres.inspection import findings

            yield from findings(store)
    except StoreError as error:
        yield "bad", f"{error}; {error.hint}" if error.hint else str(error)


def sqlite_warning() -> str:
    """One sentence if the SQLite in use has a known bug that a person should know of, else
    empty."""
    from perdure.store.disk import sqlite_warning

    return sqlite_warning()
