"""The store's statements, read once from `queries.sql`: `SQL["claim_next"]`.

They are written for SQLite, in portable SQL; `store.postgres.translation` converts the parameters
to the form that psycopg takes.
"""

from __future__ import annotations

from pathlib import Path

_MARK = "-- name: "


def load(text: str) -> dict[str, str]:
    """Return the named statements of a text. A comment line `-- name: x` above a statement names
    it."""
    statements: dict[str, str] = {}
    for part in ("\n" + text).split("\n" + _MARK)[1:]:
        name, _, statement = part.partition("\n")
        statements[name.strip()] = statement.strip()
    return statements


SQL = load((Path(__file__).parent / "queries.sql").read_text(encoding="utf-8"))
