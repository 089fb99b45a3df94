"""Detects that Codex's index of its threads has paths outside of Codex's home. Called by the
driver. Only reads files. Observed with 0.169.0.

`{home}/state_5.sqlite` holds the absolute path of every rollout. After the home was moved, Codex
finds none of its threads ("no rollout found") although their files are there. After the home was
copied, Codex continues in the old files. Moving the database aside would lose other data that it
contains. So perdure gives such a thread an index of its own (`CODEX_SQLITE_HOME`), which Codex
fills from the rollouts of its home.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from perdure.agents.codex import transcript

VARIABLE = "CODEX_SQLITE_HOME"
SETTING = "sqlite_home"
"""Name of a setting in Codex's configuration. It has the same effect as the variable
CODEX_SQLITE_HOME."""
_OWN = "perdure-index"
_ROLLOUT = "select rollout_path from threads where id = ?"
PATIENCE_S = 2.0


def separate_index(home: Path, session_id: str) -> Path | None:
    """Return the directory for an index that belongs only to this thread. None if no such index is
    needed: the thread has no file, or the home's index has no wrong path for it."""
    there = transcript.remains(home, session_id)
    told = _indexed_path(home, session_id)
    if not there or told is None or any(_same(told, path) for path in there):
        return None
    return home / _OWN


def _indexed_path(home: Path, session_id: str) -> Path | None:
    """Return the path of the thread's file according to the newest index; None if the thread is not
    in the index."""
    indexes = sorted(home.glob("state_*.sqlite"), key=lambda path: (len(path.name), path.name))
    if not indexes:
        return None
    try:
        with closing(
            sqlite3.connect(
                f"{indexes[-1].absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S
            )
        ) as index:
            row = index.execute(_ROLLOUT, (session_id,)).fetchone()
    except sqlite3.Error:
        return None
    if row and isinstance(row[0], str) and row[0]:
        return Path(row[0])
    return None


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
