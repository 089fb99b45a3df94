"""Bytes by their SHA-256 below `{state}/given`: every version that was given, and every merge,
readable by the owner alone.

A content is there whole or not at all, and is never changed. Other rooms only name digests.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

from perdure.errors import StoreError


class Contents:
    """The contents below one state directory."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "given"

    def path(self, sha256: str) -> Path:
        """Where the content lies, or would."""
        return self.directory / sha256[:2] / sha256

    def put(self, content: bytes) -> str:
        """Keeps it, for certain, and returns its digest. Raises StoreError."""
        digest = hashlib.sha256(content).hexdigest()
        place = self.path(digest)
        try:
            if self.get(digest) is None:
                write(place, content)
        except OSError as error:
            raise StoreError(
                f"a task file cannot be kept in {place.parent}: {error.strerror}",
                "make room, or see to its rights",
            ) from error
        return digest

    def get(self, sha256: str) -> bytes | None:
        """The content; None where it is not here, or damaged."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        try:
            content = self.path(sha256).read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None


def write(place: Path, content: bytes) -> None:
    """Writes a file of perdure's own, all of it or nothing, readable by its owner alone. Raises
    OSError."""
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
    """Makes what is missing of a path, durably. Raises OSError."""
    for missing in reversed(
        [each for each in (directory, *directory.parents) if not each.exists()]
    ):
        missing.mkdir(mode=0o700, exist_ok=True)
        sync(missing.parent)


def sync(directory: Path) -> None:
    """Makes what happened in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
