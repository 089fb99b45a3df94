"""Reads an agent's output from its file as whole lines of bytes. The lines may have any content and
length; the memory in use is limited."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.patterns import late_pattern

CHUNK = 4 * 1024**2
"""Maximum number of bytes that one `read` takes from the file."""
CAP = 64 * 1024**2
"""Maximum number of bytes that are kept of one line. Agents print tool results of tens of megabytes
as a single line."""


class Lines:
    """Follows a growing file. Lines end at `\\n` only (not at U+2028, `\\r` or other separators of
    `splitlines`).

    A line that is longer than `cap` is cut. `capped` counts such lines, `dropped` the bytes that
    were cut off. At most cap + CHUNK bytes are in memory.

    `offset` is the position up to which the file was read. `complete` is the position where the
    first unfinished line begins: a new Lines that starts at this position loses and repeats
    nothing. If the file becomes shorter (a tool wrote to /dev/stdout), it is read again from its
    start.
    """

    def __init__(self, path: Path, *, cap: int = CAP, offset: int = 0) -> None:
        self.path, self.cap, self.offset = path, cap, offset
        self.complete = offset
        self.capped = 0
        self.dropped = 0
        self._torn: list[bytes] = []
        self._held = 0

    def read(self) -> list[bytes]:
        """Read at most CHUNK new bytes, and return the lines that are now complete, without their
        `\\n`.

        An empty list does not mean that the end of the file was reached. If anything was read,
        `offset` has grown.
        """
        *ends, torn = self._take().split(b"\n")
        lines = []
        if ends and self.cap >= CHUNK:
            # Only the first line can continue an unfinished one. The others are complete and
            # shorter than the cap.
            lines = [self._end(ends[0]), *ends[1:]]
            self.offset += sum(map(len, ends)) - len(ends[0]) + len(ends) - 1
            self.complete = self.offset
        else:
            lines = list(map(self._end, ends))
        self._keep(torn)
        return lines

    def _end(self, piece: bytes) -> bytes:
        self._keep(piece)
        self.offset += 1
        return self.rest()

    def rest(self) -> bytes:
        """Return the last line if it does not end with `\\n`, otherwise b"". Call it when the file
        is complete and was read to its end."""
        if len(self._torn) == 1:
            line = self._torn[0]
        else:
            line = b"".join(self._torn)
        self._forget()
        self.complete = self.offset
        return line

    def _take(self) -> bytes:
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            if os.fstat(fd).st_size < self.offset:
                self._forget()
                self.offset = self.complete = 0
            return os.pread(fd, CHUNK, self.offset)
        finally:
            os.close(fd)

    def _keep(self, piece: bytes) -> None:
        kept = piece[: self.cap - self._held]
        whole_so_far = self.offset - self.complete == self._held
        self.capped += whole_so_far and len(kept) < len(piece)
        self.dropped += len(piece) - len(kept)
        if kept:
            self._torn.append(kept)
        self._held += len(kept)
        self.offset += len(piece)

    def _forget(self) -> None:
        self._torn = []
        self._held = 0


_ESCAPES = late_pattern(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links, clipboard
    r"|\x1b[PX^_][^\x1b]*\x1b\\"  # DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colors, cursor
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = late_pattern("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(output: bytes) -> str:
    """Return an agent's output as text that is safe to display. Invalid UTF-8 becomes `\\xNN`.
    Escape sequences and control characters are removed, except newline and tab."""
    return _CONTROLS.sub(
        "", _ESCAPES.sub("", output.decode("utf-8", "backslashreplace").replace("\r\n", "\n"))
    )


def tail(path: Path, size: int = 4096) -> str:
    """Return the last `size` bytes of a file as plain text; "" if there is no such file."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            kept = file.read(size)
    except OSError:
        return ""
    # The cut may split the first character. Its remaining bytes are removed, because they are not
    # invalid output of the agent.
    return plain(kept if end <= size else kept.lstrip(bytes(range(0x80, 0xC0))))
