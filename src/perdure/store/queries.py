"""Loads the store's statements from `queries.sql`, once. `SQL["claim_next"]` is an example of a
lookup.

The statements are written for SQLite, in portable SQL. `store.postgres.translation` converts the
parameters to psycopg's form.
"""

from __future__ import annotations

from pathlib import Path

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
