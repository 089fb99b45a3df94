"""Finds files that appear while a test waits, and directories for temporary files."""

from __future__ import annotations

import os
from pathlib import Path


def first_file(top: Path, name: str) -> Path | None:
    """Return a file of this name below `top`, or None. A file that is removed during the search is
    skipped; `Path.rglob` would raise FileNotFoundError."""
    return next(
        (Path(where, name) for where, _, files in os.walk(top) if name in files),
        None,
    )


def on_another_file_system(path: Path) -> Path:
    """Return a directory for temporary files that is on another file system than `path`. Raise
    StopIteration if there is none."""
    own = path.stat().st_dev
    places = map(Path, ("/dev/shm", "/var/tmp", "/tmp"))
    return next(each for each in places if each.stat().st_dev != own and os.access(each, os.W_OK))
