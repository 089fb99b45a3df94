"""Codex's own index of its threads, where it leads away from its home. Called by the driver. Reads,
and never writes. As of 0.169.0.

`{home}/state_5.sqlite` holds the absolute path of every rollout. After the home was moved, Codex
finds none of its threads ("no rollout found") although they lie there; after it was copied, it goes
on in the old place. Moving the database aside would lose what else the user keeps in it. So such a
thread is given an index of its own (`CODEX_SQLITE_HOME`), which Codex fills from the rollouts of
its home.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from perdure.agents.codex import transcript

VARIABLE = "CODEX_SQLITE_HOME"
SETTING = "sqlite_home"
"""The same in the configuration."""
_OWN = "perdure-index"
_ROLLOUT = "select rollout_path from threads where id = ?"
PATIENCE_S = 2.0


def own_index(home: Path, session_id: str) -> Path | None:
    """Return the directory for the thread's own index; None where the home's index has the thread's
    file, or does not know it."""
    there = transcript.remains(home, session_id)
    told = _told(home, session_id)
    if not there or told is None or any(_same(told, path) for path in there):
        return None
    return home / _OWN


def _told(home: Path, session_id: str) -> Path | None:
    """Where the newest index says that the thread's file is."""
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
    return Path(row[0]) if row and isinstance(row[0], str) and row[0] else None


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
