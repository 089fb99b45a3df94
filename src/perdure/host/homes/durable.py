"""Writes a file so that it has either the old or the new content after a kill or a power cut. Also
swaps two names in one step.

The other modules of this package use this one. Systems other than Linux may lack the flags of
renameat2(2). Some FUSE and network file systems do not support them either (EINVAL). Without the
flags, `place_new` uses other calls, and `exchange` raises OSError.
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
    """Write a small file with mode 0600, completely or not at all, and make it durable. Without
    `replace`, raises FileExistsError if the file exists."""
    # Without `replace`, several processes may create the file at the same time, so each needs a
    # temporary name of its own. With `replace`, the caller holds a lock, so a fixed name is enough.
    # A temporary file that a killed process left is then overwritten.
    part = path.with_name(f"{path.name}.part" if replace else f"{path.name}.part-{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        content = text.encode()
        while content:
            content = content[os.write(fd, content) :]
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
    """Flush a directory's entries (the names, not the files' content) to the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def place_new(source: Path, target: Path) -> None:
    """Rename a file or directory. Raises FileExistsError if the target exists."""
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
    """Swap the names of two files or directories in one step. Raises OSError with EINVAL, ENOSYS or
    ENOTSUP if the system or the file system cannot do that."""
    rename(one, other, EXCHANGE)


def is_unsupported(error: OSError) -> bool:
    """Return whether the error means that the file system does not support the operation."""
    return error.errno in _UNABLE


@contextlib.contextmanager
def lock(path: Path, busy: str, *, shared: bool = False, patience_s: float = 0.0) -> Iterator[None]:
    """Hold an advisory lock on a file during the block. The file is never deleted. `shared`: other
    holders with `shared` are allowed. `patience_s`: maximum time to wait for the lock, in seconds.
    After that, raises Conflict with the message `busy`."""
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
