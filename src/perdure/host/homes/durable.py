"""Writes files so that a kill or a power cut leaves the old or the new content, and swaps two names
in one step.

On systems other than Linux, and on file systems without `renameat2` (some FUSE and network ones
answer EINVAL), the closest alternative is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import Conflict
from perdure.host.system.files import EXCHANGE, NOREPLACE, rename

_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def write(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a small file (0600) durably, completely or not at all. Without `replace`, raises
    FileExistsError if it exists."""
    # Several processes may create a file at once, so each uses its own temporary name. Replacing
    # happens under a lock, so one name is enough, and a leftover of a killed writer is overwritten.
    part = path.with_name(f"{path.name}.part" if replace else f"{path.name}.part-{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
        if replace:
            part.replace(path)
        else:
            place_new(part, path)
    finally:
        os.close(fd)
        part.unlink(missing_ok=True)
    sync(path.parent)


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def place_new(source: Path, target: Path) -> None:
    """Rename without ever replacing anything. Raises FileExistsError."""
    try:
        rename(source, target, NOREPLACE)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        if source.is_dir() and not source.is_symlink():
            if os.path.lexists(target):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target)
                ) from error
            source.rename(target)
            return
        os.link(source, target, follow_symlinks=False)
        source.unlink()


def exchange(one: Path, other: Path) -> None:
    """Swap two names of any kind in one step. Raises OSError with EINVAL if the file system cannot
    do that."""
    rename(one, other, EXCHANGE)


def can_not(error: OSError) -> bool:
    """Return whether the error means that the file system does not support the operation."""
    return error.errno in _UNABLE


@contextlib.contextmanager
def lock(path: Path, busy: str, *, shared: bool = False, patience_s: float = 0.0) -> Iterator[None]:
    """Hold an advisory lock on a file, which is never unlinked. Raises Conflict with the sentence
    `busy` after `patience_s` seconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Conflict(
                        f"{busy[0].upper()}{busy[1:]}.", "Wait until it has ended, then try again."
                    ) from None
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)
