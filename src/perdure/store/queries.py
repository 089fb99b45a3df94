"""The store's statements, read once from `queries.sql`: `SQL["claim_next"]`.

They are written for SQLite, and portable; `store.postgres.translation` gives parameters the form
that psycopg wants.
"""

from __future__ import annotations

from pathlib import Path

_MARK = "-- name: "


def load(text: str) -> dict[str, str]:
    """The named statements of a text; a name is a comment line `-- name: x` above its statement."""
    statements: dict[str, str] = {}
    for part in ("\n" + text).split("\n" + _MARK)[1:]:
        name, _, statement = part.partition("\n")
        statements[name.strip()] = statement.strip()
    return statements


SQL = load((Path(__file__).parent / "queries.sql").read_text(encoding="utf-8"))
