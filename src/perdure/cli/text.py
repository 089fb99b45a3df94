"""Text for a terminal: the terminal's width, and lines cut to fit it. The functions that clean text
are in `perdure.rules.text`."""

from __future__ import annotations

import os
import sys

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
    from collections.abc import Iterable, Sequence
    from typing import TextIO

__all__ = [
    "address_of",
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
    "widths_of",
]


def columns(stream: TextIO) -> int:
    """Return the number of columns of a terminal. Return 0 if the stream is not a terminal, which
    means no limit."""
    if not stream.isatty():
        return 0
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def widths_of(rows: Iterable[Sequence[str]]) -> list[int]:
    """Return the width of each column of a table, in characters. All rows have equal lengths."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def say(text: str, hang: int = 2) -> None:
    """Print a text. On a terminal it is wrapped at words. Continuation lines are indented by `hang`
    more columns than the first line."""
    from perdure.cli.style import wrapped

    print(wrapped(text, columns(sys.stdout), hang))


def shown_path(path: str, stream: TextIO) -> str:
    """Return a cleaned path for display. In a pipe it is complete. On a terminal the user's home
    directory is shortened to `~`. If the terminal shows colors, the path is also a link (OSC 8) to
    the directory."""
    if not stream.isatty():
        return clean(path)
    if not path.startswith("/"):
        return at_home(path)
    from perdure.cli.style import linked

    return linked(at_home(path), lambda: address_of(path), stream)


def address_of(path: str) -> str:
    """Return the `file:` URL of a path on this host."""
    from urllib.parse import quote

    # The host name is part of the URL, because the terminal may run on another machine.
    return f"file://{os.uname().nodename}{quote(os.fsencode(path))}"


def cut(line: str, width: int) -> str:
    """Return a clean line cut to `width` columns (0: no limit). If it was cut, it ends with an
    ellipsis. Wide characters take two columns."""
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
