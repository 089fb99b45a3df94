"""Upgrades the schema with numbered scripts, all in one transaction. `PRAGMA user_version` has the
number of the last script.

Called by `sqlite.connect`. After a kill, a full disk or a power cut, the database has either the
previous schema or the newest one. A new database stays empty until its schema is complete. If
several processes upgrade at once, the first one to get the write lock does it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import StoreError

SCRIPTS = Path(__file__).parent / "migrations"

APPLICATION = 0x70726472
"""`PRAGMA application_id` of perdure's databases ("prdr"). A database of another program has a
different one, and is not changed."""


def newest(scripts: Path = SCRIPTS) -> int:
    """Return the schema version of this perdure: the number of its newest script."""
    return max(number for number, _ in numbered(scripts))


def version_of(connection: sqlite3.Connection, place: str, scripts: Path = SCRIPTS) -> int:
    """Return the schema version of a database; 0 for an empty one. Raises StoreError for a database
    from a newer perdure or from another program."""
    # Another process may create the schema meanwhile, in one transaction. Because
    # the owner is read last, whoever has seen tables or a version also sees their owner.
    tables = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if owner != APPLICATION and (version or tables):
        raise StoreError(
            f"{place} is a database of another program", "choose another state directory"
        )
    if version > newest(scripts):
        raise StoreError(
            f"{place} was written by a newer perdure (schema {version}; this one knows "
            f"{newest(scripts)})",
            "upgrade perdure, or choose another state directory",
        )
    return version


def migrate(connection: sqlite3.Connection, place: str, scripts: Path = SCRIPTS) -> None:
    """Upgrade the schema. An error leaves the database unchanged. The connection must be in
    autocommit mode."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = version_of(connection, place, scripts)
        for number, script in numbered(scripts):
            if version < number:
                for statement in statements(script.read_text(encoding="utf-8")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def numbered(scripts: Path = SCRIPTS) -> list[tuple[int, Path]]:
    """Return the scripts with their numbers, in order."""
    return sorted((int(script.name.partition("_")[0]), script) for script in scripts.glob("*.sql"))


def statements(script: str) -> Iterator[str]:
    """Yield the statements of a script one at a time. `executescript` cannot be used, because it
    commits before it begins."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in pending.splitlines()):
        raise ValueError(f"a migration ends in the middle of a statement: {pending.strip()[:60]!r}")
