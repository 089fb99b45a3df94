"""Colors, symbols and word wrap for a terminal. Plain text where there is none.

A library is not used here, because `perdure ls` must not load one. NO_COLOR turns colors off,
CLICOLOR_FORCE turns them on into a pipe.
"""

from __future__ import annotations

import os
import re
from itertools import chain

TYPE_CHECKING = False  # typing is too dear for `perdure ls`
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
"""The style of each state of a run, and of what is shown in place of one."""
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
"""What stands for a symbol of perdure's own where the terminal's encoding does not have it."""
_CODE = re.compile("\x1b\\[[0-9;]*m")
LEAST = 20
"""Width below which lines are not wrapped: the terminal does it."""


def is_colored(stream: TextIO) -> bool:
    """Return whether colors belong there: on a terminal that is not dumb, if NO_COLOR is not set;
    anywhere with CLICOLOR_FORCE."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def paint(text: str, style: str, stream: TextIO) -> str:
    """Return the clean text in a style of CODES, if the stream shows colors."""
    if not text or style not in CODES or not is_colored(stream):
        return text
    return f"\x1b[{CODES[style]}m{text}\x1b[m"


def linked(text: str, find: Callable[[], str], stream: TextIO) -> str:
    """Return the text as a link (OSC 8) to the address that `find` returns, if the stream shows
    colors and there is one."""
    if not is_colored(stream):
        return text
    address = find()
    return f"\x1b]8;;{address}\x1b\\{text}\x1b]8;;\x1b\\" if address else text


def fitted(text: str, stream: TextIO) -> str:
    """Return the text with perdure's own symbols replaced where the stream cannot write them."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        for symbol, plain in PLAIN.items():
            text = text.replace(symbol, plain)
    except LookupError:
        return text
    return text


def width_of(text: str) -> int:
    """Return the number of columns that a text takes; colors take none, wide characters two."""
    text = _CODE.sub("", text)
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    wide = sum(east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(1 for each in text if combining(each))


def wrapped(text: str, width: int, hang: int = 2) -> str:
    """Return the text wrapped at words: what goes on is indented by `hang` more than its line. A
    word that is too long, such as a path, stays whole. `width` 0 is any."""
    if width < LEAST:
        return text
    return "\n".join(chain.from_iterable(_pieces(line, width, hang) for line in text.split("\n")))


def _pieces(line: str, width: int, hang: int) -> list[str]:
    if width_of(line) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip(" "))]
    pieces, current = [], start
    for word in line[len(start) :].split(" "):
        longer = f"{current} {word}" if current.strip() else f"{current}{word}"
        if current.strip() and width_of(longer) > width:
            pieces.append(current)
            current = f"{start}{' ' * hang}{word}"
        else:
            current = longer
    return [*pieces, current]
