"""Reads the table in docs/reference/trust.md. The tests check that exactly those vectors succeed
that the table lists as succeeding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/trust.md"
HEADING = "## Every vector, and its test"


@dataclass(frozen=True)
class Row:
    name: str
    worktree: bool
    """Whether the page says that the vector succeeds in this backend."""
    isolated: bool
    tests: tuple[str, ...]


def rows() -> dict[str, Row]:
    """Return every row of the table whose first cell is a name in backticks."""
    found: dict[str, Row] = {}
    for line in PAGE.read_text(encoding="utf-8").partition(HEADING)[2].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 5 or not (name := re.fullmatch(r"`([^`]+)`", cells[0])):
            continue
        assert name[1] not in found, f"{name[1]} stands twice"
        verdicts = [cell.startswith("**yes**") for cell in cells[2:4]]
        found[name[1]] = Row(name[1], *verdicts, tuple(re.findall(r"`(test_\w+)`", cells[4])))
    return found


def documented(backend: str) -> set[str]:
    """Return the names of all vectors that, according to the table, succeed in a backend."""
    return {row.name for row in rows().values() if getattr(row, backend)}
