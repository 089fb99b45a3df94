"""File operations that exist only on Linux, with the closest alternative for other POSIX
systems."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from perdure.host import system

if TYPE_CHECKING:
    import ctypes

NOREPLACE, EXCHANGE = 1, 2
"""Flags of `rename`, as of renameat2(2)."""
RECENT_S = 3600.0
"""Age of the oldest change that a portable `flush` still makes durable, in seconds.
Everything is flushed within seconds, and a file system writes back by itself within a minute."""
_AT_FDCWD = -100


def rename(source: Path, target: Path, flags: int) -> None:
    """Rename with the flags, in one step. Raises OSError: with ENOSYS, EINVAL or ENOTSUP where that
    is impossible.

    `renameat2` (Linux 3.15) is not in Python's `os` (3.13), so it is called by ctypes.
    """
    if system.IS_PORTABLE:
        call = None
    else:
        call = getattr(_libc(), "renameat2", None)
    if call is None:  # another system, or a C library without this function
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
    import ctypes

    one, other = os.fsencode(source), os.fsencode(target)
    if call(_AT_FDCWD, one, _AT_FDCWD, other, ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(
            number, os.strerror(number), str(source if number == errno.ENOENT else target)
        )


def flush(directory: Path) -> None:
    """Make everything that was just written below the directory durable: syncfs(2) on Linux,
    elsewhere fsync(2) of each file and directory that changed within `RECENT_S`. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if system.IS_PORTABLE:
            since = time.time() - RECENT_S
            for path in _changed(directory, since):
                _fsync(path)
            system.sync(fd)
        elif _libc().syncfs(fd):
            import ctypes

            number = ctypes.get_errno()
            raise OSError(number, f"syncfs of {directory}: {os.strerror(number)}")
    finally:
        os.close(fd)


def _changed(directory: Path, since: float) -> Iterator[str]:
    for above, _, names in os.walk(directory):
        for path in (*(os.path.join(above, name) for name in names), above):  # noqa: PTH118
            with contextlib.suppress(OSError):
                found = os.lstat(path)
                regular = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
                if regular and found.st_ctime >= since:
                    yield path


def _fsync(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # gone, or its owner may not open it; git and agents write only readable files
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def umask() -> int:
    """Return this process's umask, read without changing it even for a moment."""
    if system.IS_PORTABLE:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="pd-") as above:
            made = Path(above, "d")
            made.mkdir()
            return 0o777 & ~made.stat().st_mode
    import re

    status = Path("/proc/self/status").read_text()
    found = re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1], 8)


def change_mode(name: str, above: int, change: Callable[[int], int | None]) -> None:
    """Call `change` with the st_mode of a name in an open directory, and set the mode that it
    returns; None leaves the mode unchanged. Links are not followed. Raises OSError."""
    if system.IS_PORTABLE:
        there = os.lstat(name, dir_fd=above).st_mode
        mode = change(there)
        if mode is not None and not stat.S_ISLNK(there):
            _change_mode(name, above, mode)
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        mode = change(os.fstat(fd).st_mode)
        if mode is not None:
            # fchmod does not accept an O_PATH descriptor; chmod accepts its entry in /proc.
            os.chmod(f"/proc/self/fd/{fd}", mode)  # noqa: PTH101
    finally:
        os.close(fd)


def _change_mode(name: str, above: int, mode: int) -> None:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=above)
    except PermissionError:
        # The owner has no permission to open the file. A link that is put there at this moment
        # would be followed.
        os.chmod(name, mode, dir_fd=above)
        return
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def path_in(above: int, directory: Path, name: str) -> Path:
    """Return a path of a name in an open directory, which is at `directory`. On Linux the path
    stays valid if somebody renames the directory."""
    if system.IS_PORTABLE:
        return directory / name
    return Path(f"/proc/self/fd/{above}/{name}")


def scratch_file() -> IO[bytes]:
    """Return an open file without a name: in memory on Linux."""
    if system.IS_PORTABLE:
        import tempfile

        return tempfile.TemporaryFile()
    return os.fdopen(os.memfd_create("stdin"), "w+b")


def allocate(fd: int, size: int) -> None:
    """Reserve room for a file from its beginning. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    piece = bytes(1 << 20)
    for at in range(0, size, len(piece)):
        os.pwrite(fd, piece[: size - at], at)


def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
