"""Colors, symbols and word wrap for a terminal; plain text if the stream is not a terminal.

It uses no library, because `perdure ls` must not load one. NO_COLOR turns colors off;
CLICOLOR_FORCE turns them on even for a pipe.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # importing typing is too slow for `perdure ls`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

CODES = {"good": "32", "bad": "31", "warn": "33", "busy": "36", "dim": "2", "strong": "1"}
STATES = {
    "succeeded": "good",
    "failed": "bad",
    "interrupted": "bad",
    "running": "busy",
    "unattended": "warn",
    "queued": "warn",
    "pending": "dim",
    "cancelled": "dim",
}
"""The style of each word that is shown as the state of a run: its states, and each liveness that is
shown instead of `running`."""
SYMBOLS = {
    "succeeded": "✓",
    "failed": "✗",
    "interrupted": "✗",
    "running": "●",
    "unattended": "●",
    "queued": "◌",
    "pending": "◌",
    "cancelled": "■",
}
PLAIN = {
    "✓": "ok",
    "✗": "x",
    "●": "*",
    "◌": "o",
    "■": "-",
    "·": "-",
    "−": "-",
    "…": "...",
    "≈": "~",
}
"""Replacements for perdure's symbols, for a terminal whose encoding does not have them."""
_CODE = "\x1b\\[[0-9;]*m|\x1b]8;;[^\x1b]*\x1b\\\\"
LEAST = 20
"""Minimum width in columns for which perdure wraps lines. On a narrower terminal, perdure leaves
the wrapping to the terminal."""


def is_colored(stream: TextIO) -> bool:
    """Return whether to use colors. They are used on a terminal that is not dumb, and with
    CLICOLOR_FORCE for any stream. NO_COLOR turns them off."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def paint(text: str, style: str, stream: TextIO) -> str:
    """Return the text with the escape codes of a style (a key of CODES), if the stream shows
    colors. The text must be clean."""
    if not text or style not in CODES or not is_colored(stream):
        return text
    return f"\x1b[{CODES[style]}m{text}\x1b[m"


def linked(text: str, find: Callable[[], str], stream: TextIO) -> str:
    """Return the text as a link (OSC 8) to the address that `find` returns. If the stream shows no
    colors or the address is empty, return the text unchanged."""
    if not is_colored(stream):
        return text
    address = find()
    if address:
        return f"\x1b]8;;{address}\x1b\\{text}\x1b]8;;\x1b\\"
    return text


def fitted(text: str, stream: TextIO) -> str:
    """Return the text, with perdure's own symbols replaced if the stream cannot encode them."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        for symbol, plain in PLAIN.items():
            text = text.replace(symbol, plain)
    except LookupError:
        return text
    return text


def width_of(text: str) -> int:
    """Return the width of a text in columns. Color codes and links have no width, and wide
    characters have two columns."""
    if "\x1b" in text:
        text = re.sub(_CODE, "", text)
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    wide = sum(east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(map(bool, map(combining, text)))


def wrapped(text: str, width: int, hang: int = 2) -> str:
    """Return the text wrapped at words, for `width` columns (0: no limit). Continuation lines are
    indented by `hang` more columns than the first line. A long word, such as a path, is not broken.
    """
    if width < LEAST:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        lines += _pieces(line, width, hang)
    return "\n".join(lines)


def _pieces(line: str, width: int, hang: int) -> list[str]:
    if width_of(line) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip(" "))]
    pieces, current = [], start
    for word in line[len(start) :].split(" "):
        if current.strip():
            longer = f"{current} {word}"
        else:
            longer = f"{current}{word}"
        if current.strip() and width_of(longer) > width:
            pieces.append(current)
            current = f"{start}{' ' * hang}{word}"
        else:
            current = longer
    return [*pieces, current]
