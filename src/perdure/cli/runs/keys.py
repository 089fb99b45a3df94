"""A full-screen terminal that reads keys and draws lines. Used by `picker` and `run_picker`. The
terminal is restored at the end, also after an error.

Keys are read from standard input. The screen is drawn on standard error, so that standard output
can go into a pipe. Ctrl-C and Ctrl-Z arrive as keys. SIGTERM and SIGHUP end the process after the
terminal is restored.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END = "up", "down", "page up", "page down", "home", "end"
ENTER, ESCAPE, BACKSPACE, SPACE, CTRL_A, CTRL_C, CTRL_U = (
    "enter",
    "escape",
    "backspace",
    " ",
    "ctrl a",
    "ctrl c",
    "ctrl u",
)
RESIZED = "resized"

_PLAIN = {
    "\r": ENTER,
    "\n": ENTER,
    "\x7f": BACKSPACE,
    "\x08": BACKSPACE,
    "\x01": CTRL_A,
    "\x03": CTRL_C,
    "\x04": CTRL_C,
    "\x15": CTRL_U,
}
_SEQUENCES = {
    "A": UP,
    "B": DOWN,
    "H": HOME,
    "F": END,
    "1~": HOME,
    "4~": END,
    "5~": PAGE_UP,
    "6~": PAGE_DOWN,
    "7~": HOME,
    "8~": END,
}
_PATIENCE_S = 0.05
"""Time in seconds to wait for the rest of an escape sequence. If nothing more arrives, the key was
Escape."""
_TICK_S = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class FullScreen:
    """Takes over the terminal for the duration of a `with` block."""

    def __init__(self) -> None:
        self._keyboard, self._screen = sys.stdin.fileno(), sys.stderr.fileno()
        self._saved: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._waiting: list[str] = []
        self._drawn: tuple[int, int] = (0, 0)

    def __enter__(self) -> FullScreen:
        self._saved = termios.tcgetattr(self._keyboard)
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, _end)
        try:
            tty.setraw(self._keyboard)
            self._write("\x1b[?1049h\x1b[?25l")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._write("\x1b[0m\x1b[?25h\x1b[?1049l")
        finally:
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._saved)
            for number, before in self._handlers.items():
                signal.signal(number, before)

    @property
    def size(self) -> tuple[int, int]:
        """The number of columns and of lines."""
        found = os.get_terminal_size(self._screen)
        return found.columns or 80, found.lines or 24

    def draw(self, lines: Sequence[str]) -> None:
        """Draw these lines from the top of the screen. They must fit on the screen."""
        self._drawn = self.size
        self._write("\x1b[H" + "\r\n".join(f"{line}\x1b[0m\x1b[K" for line in lines) + "\x1b[J")

    def key(self) -> str:
        """Wait for the next key and return it. It is a character, one of the names defined above,
        or RESIZED if the size of the terminal has changed. Return ESCAPE if the terminal is lost.
        """
        while not self._waiting:
            if self.size != self._drawn:
                return RESIZED
            if select.select([self._keyboard], [], [], _TICK_S)[0]:
                self._waiting = self._read()
        return self._waiting.pop(0)

    def _read(self) -> list[str]:
        got = os.read(self._keyboard, 1024)
        if not got:
            return [ESCAPE]
        while (got.endswith((b"\x1b", b"\x1b[", b"\x1bO")) or _is_cut(got)) and select.select(
            [self._keyboard], [], [], _PATIENCE_S
        )[0]:
            more = os.read(self._keyboard, 1024)
            got += more
            if not more:
                break
        return keys(got.decode("utf-8", "ignore"))

    def _write(self, text: str) -> None:
        content = text.encode("utf-8", "replace")
        while content:
            content = content[os.write(self._screen, content) :]


def keys(text: str) -> list[str]:
    """Return the keys in the text that was typed. Unknown escape sequences are skipped."""
    found = []
    at = 0
    while at < len(text):
        if text[at] == "\x1b" and text[at + 1 : at + 2] in ("[", "O"):
            end = at + 2
            while end < len(text) and not "\x40" <= text[end] <= "\x7e":
                end += 1
            if name := _SEQUENCES.get(text[at + 2 : end + 1]):
                found.append(name)
            at = end + 1
            continue
        character = text[at]
        if character == "\x1b":
            found.append(ESCAPE)
        elif name := _PLAIN.get(character):
            found.append(name)
        elif character.isprintable():
            found.append(character)
        at += 1
    return found


def _is_cut(got: bytes) -> bool:
    """Return whether the bytes end in the middle of a UTF-8 character."""
    try:
        got.decode()
    except UnicodeDecodeError as error:
        return error.end == len(got)
    return False


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
