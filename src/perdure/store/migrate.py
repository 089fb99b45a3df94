"""Upgrades the schema: numbered scripts, all in one transaction, counted by `PRAGMA user_version`.

Called by `sqlite.connect`. A kill, a full disk or a power cut at any point leaves either the
previous schema or the newest one. A new database is empty until its schema is complete. If many
processes upgrade at once, the first one to get the write lock does it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import StoreError

SCRIPTS = Path(__file__).parent / "migrations"

APPLICATION = 0x70726472
"""`PRAGMA application_id` of perdure's databases ("prdr"). A file of another program is not
touched."""


def newest(scripts: Path = SCRIPTS) -> int:
    """Return the schema version that this perdure writes."""
    return max(number for number, _ in numbered(scripts))


def version_of(connection: sqlite3.Connection, place: str, scripts: Path = SCRIPTS) -> int:
    """Return the schema version of a database, 0 for an empty one. Raises StoreError for a database
    of a newer perdure or of another program."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if owner != APPLICATION and (
        version or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    ):
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
    """Upgrade the schema, or change nothing. The connection must be in autocommit mode."""
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
    """Yield the statements one at a time: `executescript` would commit before it begins."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in pending.splitlines()):
        raise ValueError(f"a migration ends in the middle of a statement: {pending.strip()[:60]!r}")
