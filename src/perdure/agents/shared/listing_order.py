"""Conversations on disk, the newest first, without reading long ones whole. Shared by the drivers
whose transcripts are files.

Called by the drivers' `conversations`; what a file says of itself is read by the driver's own
reader.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from pathlib import Path

from perdure.model import Conversation

HEAD = 256 * 1024
"""So much of a long transcript is read: the first prompt stands in it."""
WHOLE = 4 * 1024 * 1024
"""Up to this size a transcript is read whole, so that its turns can be counted."""

Reader = Callable[[Path, bytes, bool, int], Conversation | None]
"""Path, content (or its head), whether that is all of it, time of the last write (ms) -> what
stands there, if it is one."""


def newest(paths: Iterable[Path], limit: int, read: Reader) -> Sequence[Conversation]:
    """The newest files that the reader takes for conversations, at most `limit`. What cannot be
    read is passed over."""
    found: list[Conversation] = []
    dated = [
        (state.st_mtime_ns, path, state.st_size)
        for path in paths
        if (state := _state(path)) is not None
    ]
    # A few more than asked for: some files are no conversations.
    for written, path, size in nlargest(limit * 2 + 20, dated):
        if len(found) >= limit:
            break
        conversation = read(path, _content(path, size), size <= WHOLE, written // 1_000_000)
        if conversation is not None:
            found.append(conversation)
    return found


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _content(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read() if size <= WHOLE else file.read(HEAD)
    except OSError:
        return b""
