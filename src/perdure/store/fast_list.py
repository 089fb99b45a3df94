"""Reads the newest runs with nothing but sqlite3. Used by `perdure ls`, which must respond
instantly. Also used by commands whose argument is not the name of any run, to find similar names.

The functions work only in the normal case. In any unusual case (another schema version, an error)
they return None. The caller then uses the ordinary store, which reports the problem in a sentence.
This module and its imports must not use typing, pathlib or dataclasses. Importing any of them would
take longer than the query.
"""

from __future__ import annotations

import os.path
import sqlite3
from collections.abc import Sequence

from perdure.rules.text import LISTED_PROMPT

HERE = os.path.dirname(__file__)  # noqa: PTH120
COLUMNS = (
    "id",
    "name",
    "state",
    "agent",
    "attempt",
    "reason",
    "updated",
    "created",
    "place",
    "worker",
    "run_after",
    "fill_tokens",
    "fill_window",
    "lease_until",
    "host",
    "key",
    "scope",
)


DETAILS = (
    *("repo", "branch", "prompt", "title", "link", "role", "labels"),
    *("cost_usd", "estimated", "work"),
)
"""Fields that are read from JSON, which is slower than reading a column. Therefore they are read
only for the rows that are shown."""
_DETAILS = f"""SELECT json_extract(workspace, '$.repo'), json_extract(workspace, '$.branch'),
 substr(json_extract(spec, '$.prompt'), 1, {LISTED_PROMPT}), title, link, rule,
 json_extract(spec, '$.labels'),
 (SELECT round(coalesce(sum(json_extract(body, '$.usage.cost_usd')), 0), 6) FROM attempts
  WHERE run = runs.id),
 (SELECT coalesce(max(json_extract(body, '$.usage.estimated')), 0) FROM attempts
  WHERE run = runs.id),
 (SELECT coalesce(json_extract(body, '$.work'), '') FROM attempts
  WHERE run = runs.id ORDER BY number DESC LIMIT 1)
 FROM runs WHERE ordinal = ?"""

_ONLY = "AND (agent IN ({0}) OR rule IN ({0})) "
"""SQL condition that selects runs by agent or role. `{0}` is replaced by the placeholders of the
names."""

STATES = ("pending", "queued", "running", "succeeded", "failed", "cancelled")
CHANGED = COLUMNS.index("updated")


def newest(
    path: str, states: Sequence[str], limit: int, agents: Sequence[str] = (), since: int = 0
) -> list[dict[str, str | int]] | None:
    """Return the runs that changed last, latest first, at most `limit` of them. Each is a dict with
    the names in COLUMNS and DETAILS as keys. Return None if they cannot be read quickly.

    If `agents` is not empty, only runs of these agents or roles are returned. `since` selects runs
    that changed at or after this time, in ms since 1970.
    """
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return []
    except OSError:
        return None
    connection = _opened(path)
    if connection is None:
        return None
    try:
        # Each state is read in the order of an index. A query for all states would have to sort the
        # whole table.
        only = _ONLY.format(",".join("?" * len(agents))) if agents else ""
        query = (
            f"SELECT {','.join(COLUMNS)},ordinal FROM runs WHERE state = ? AND removed IS NULL "
            f"{only}AND updated >= ? ORDER BY updated DESC, ordinal DESC LIMIT ?"
        )
        rows: list[tuple[str | int, ...]] = []
        for state in states or STATES:
            rows += connection.execute(query, (state, *agents, *agents, since, max(limit, 0)))
        rows.sort(key=lambda row: (row[CHANGED], row[-1]), reverse=True)
        found = []
        for row in rows[: max(limit, 0)]:
            details = connection.execute(_DETAILS, (row[-1],)).fetchone()
            found.append(dict(zip((*COLUMNS, *DETAILS), (*row[:-1], *details), strict=True)))
        return found
    except sqlite3.Error:
        return None
    finally:
        connection.close()


def similar_names(path: str, ref: str) -> list[str] | None:
    """Return the names of the newest runs, for a hint that no run is called `ref`. Return None if a
    run has `ref` as its name, its key or the beginning of its id, or if that cannot be determined
    quickly."""
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return []
    except OSError:
        return None
    connection = _opened(path)
    if connection is None:
        return None
    try:
        for column in ("id", "name", "key"):
            query = f"SELECT 1 FROM runs WHERE {column} = ? AND removed IS NULL"
            if connection.execute(query, (ref,)).fetchone():
                return None
        query = "SELECT 1 FROM runs WHERE id >= ? AND id < ? AND removed IS NULL"
        if connection.execute(query, (ref, ref + "\U0010ffff")).fetchone():
            return None
        query = "SELECT name FROM runs WHERE removed IS NULL ORDER BY ordinal DESC LIMIT 500"
        return [row[0] for row in connection.execute(query)]
    except (sqlite3.Error, UnicodeError):
        return None
    finally:
        connection.close()


def _opened(path: str) -> sqlite3.Connection | None:
    """Return a read-only connection to the database. Return None if it cannot be opened or has
    another schema version."""
    try:
        connection = sqlite3.connect(
            f"file:{_quoted(path)}?mode=ro", uri=True, timeout=5.0, isolation_level=None
        )
    except sqlite3.Error:
        return None
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] == _schema():
            return connection
    except sqlite3.Error:
        pass
    connection.close()
    return None


def _schema() -> int:
    """Return the schema version of this perdure: the number of the newest migration script."""
    names = os.listdir(f"{HERE}/migrations")  # noqa: PTH208
    return max(int(name.partition("_")[0]) for name in names if name.endswith(".sql"))


def _quoted(path: str) -> str:
    for character in "%?#":
        path = path.replace(character, f"%{ord(character):02x}")
    return path
