"""Reads and creates perdure's keys. A key is a file in the state directory that only perdure's own
user can read. It is created when it is first needed, and is never printed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from perdure.errors import StoreError

KEY_MOST = 8192
"""Maximum size of a key file in bytes."""


def key_in(path: Path, fresh: Callable[[], bytes] | None = None) -> bytes:
    """Return the content of a key file. If the file does not exist, create it with the content that
    `fresh` returns; without `fresh`, return empty bytes. Raises StoreError."""
    try:
        if not path.exists() and fresh is None:
            return b""
        if not path.exists() and fresh is not None:
            _make(path, fresh())
        if path.stat().st_mode & 0o077:
            raise StoreError(f"{path} can be read by others", f"chmod 600 {path}")
        with path.open("rb") as file:
            return file.read(KEY_MOST)
    except OSError as error:
        raise StoreError(f"The key {path} cannot be used: {error.strerror}") from error


def _make(path: Path, content: bytes) -> None:
    """Create the key file atomically. If two processes create it at the same time, both use the
    same key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # Another process created the key first. Its key is used.
            os.link(fresh, path)
    finally:
        fresh.unlink()
