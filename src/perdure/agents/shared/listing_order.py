"""Lists conversations on disk, newest first, without reading long ones completely. Shared by the
drivers whose transcripts are files.

Called by the drivers' `conversations`. Each driver passes the function that reads one file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from pathlib import Path

from perdure.model import Conversation

HEAD = 256 * 1024
"""Number of bytes that are read from the beginning of a long transcript. The first prompt is
normally in this part."""
WHOLE = 4 * 1024 * 1024
"""Maximum size of a transcript that is read completely, in bytes. The turns of a longer one are not
counted."""

Reader = Callable[[Path, bytes, bool, int], Conversation | None]
"""Type of a function that reads one file of an agent. It returns None if the file is not a
conversation. Its parameters are the path, the content (or its beginning), whether the content is
complete, and the time of the last write (in ms since 1970)."""


def newest(paths: Iterable[Path], limit: int, read: Reader) -> Sequence[Conversation]:
    """Return the newest conversations, at most `limit`. Files that cannot be read or are not
    conversations are skipped."""
    found: list[Conversation] = []
    dated = []
    for path in paths:
        if (state := _state(path)) is not None:
            dated.append((state.st_mtime_ns, path, state.st_size))
    # Consider more than `limit` files, because some of them may not be conversations.
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
            if size <= WHOLE:
                return file.read()
            return file.read(HEAD)
    except OSError:
        return b""
