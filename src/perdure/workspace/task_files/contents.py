"""Stores bytes by their SHA-256 below `{state}/given`, readable only by the owner: every version of
a task file that a person gave, and every merge result.

A content is stored completely or not at all, and is never changed. Other modules refer to it by
digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

from perdure.errors import StoreError


class Contents:
    """The stored contents of task files below one state directory."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "given"

    def path(self, sha256: str) -> Path:
        """Return the path at which the content is stored, even if it is not stored yet."""
        return self.directory / sha256[:2] / sha256

    def put(self, content: bytes) -> str:
        """Store the content durably and return its digest. Raises StoreError."""
        digest = hashlib.sha256(content).hexdigest()
        place = self.path(digest)
        try:
            if self.get(digest) is None:
                write(place, content)
        except OSError as error:
            raise StoreError(
                f"a task file cannot be kept in {place.parent}: {error.strerror}",
                "free some space, or check its permissions",
            ) from error
        return digest

    def get(self, sha256: str) -> bytes | None:
        """Return the content; None where it is missing or damaged."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        try:
            content = self.path(sha256).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        return None


def write(place: Path, content: bytes) -> None:
    """Write a file of perdure's own atomically, readable only by its owner. Raises OSError."""
    private_directories(place.parent)
    fresh = place.parent / f".{secrets.token_hex(8)}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        fresh.replace(place)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(place.parent)


def private_directories(directory: Path) -> None:
    """Make the missing directories of a path, durably. Raises OSError."""
    absent = [each for each in (directory, *directory.parents) if not each.exists()]
    for missing in reversed(absent):
        missing.mkdir(mode=0o700, exist_ok=True)
        sync(missing.parent)


def sync(directory: Path) -> None:
    """Make the changes in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
