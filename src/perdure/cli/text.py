"""Text for a terminal: its width, and lines cut to fit. `perdure.rules.text` decides what is
cleaned, and how."""

from __future__ import annotations

import os

from perdure.rules.text import (
    age,
    at_home,
    clean,
    clock,
    consumption,
    dollars,
    filled,
    one_line,
    tokens,
    visible,
)

TYPE_CHECKING = False  # importing typing is too slow for `perdure ls`
if TYPE_CHECKING:
    from typing import TextIO

__all__ = [
    "age",
    "at_home",
    "clean",
    "clock",
    "columns",
    "consumption",
    "cut",
    "dollars",
    "filled",
    "one_line",
    "shown_path",
    "tokens",
    "visible",
]


def columns(stream: TextIO) -> int:
    """Return the number of columns of a terminal; 0 if the stream is not one, so that nothing needs
    to be cut."""
    if not stream.isatty():
        return 0
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def shown_path(path: str, stream: TextIO) -> str:
    """Return a clean path: whole for a pipe, with `~` for a person at a terminal."""
    return at_home(path) if stream.isatty() else clean(path)


def cut(line: str, width: int) -> str:
    """Return a clean line cut to this many columns, with a mark where it was cut; 0 means no limit.
    Wide characters take two columns."""
    if not width or (line.isascii() and len(line) <= width):
        return line
    from unicodedata import combining, east_asian_width

    used = kept = 0
    for at, character in enumerate(line, 1):
        if combining(character):
            used += 0
        elif east_asian_width(character) in "WF":
            used += 2
        else:
            used += 1
        if used > width:
            return line[:kept] + "…"
        if used < width:
            kept = at
    return line
