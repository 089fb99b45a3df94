"""Looks for a file below a directory while other programs add and remove directories there."""

from __future__ import annotations

import os
from pathlib import Path


def first_file(top: Path, name: str) -> Path | None:
    """Return a file of this name below `top`, or None. What vanishes during the search is skipped,
    where `Path.rglob` raises FileNotFoundError."""
    return next(
        (Path(where, name) for where, _, files in os.walk(top) if name in files),
        None,
    )
