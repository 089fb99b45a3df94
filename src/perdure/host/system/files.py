"""Provides file operations of Linux, with the closest alternative on other POSIX systems."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from perdure.host import system

if TYPE_CHECKING:
    import ctypes

NOREPLACE, EXCHANGE = 1, 2
"""Flags of `rename`, with the values of renameat2(2)."""
RECENT_S = 3600.0
"""Maximum age of a change that the portable `flush` writes to the disk, in seconds. An hour is
ample: perdure flushes within seconds, and a file system writes back by itself within a minute."""
_AT_FDCWD = -100


def rename(source: Path, target: Path, flags: int) -> None:
    """Rename a file or directory in one step, with flags. Raises OSError, with ENOSYS, EINVAL or
    ENOTSUP if the system or the file system does not support the flags.

    Python's `os` (3.13) has no `renameat2` (Linux 3.15), so it is called through ctypes.
    """
    if system.IS_PORTABLE:
        call = None
    else:
        call = getattr(_libc(), "renameat2", None)
    if call is None:  # another system, or a C library without renameat2
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
    import ctypes

    one, other = os.fsencode(source), os.fsencode(target)
    if call(_AT_FDCWD, one, _AT_FDCWD, other, ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(
            number, os.strerror(number), str(source if number == errno.ENOENT else target)
        )


def flush(directory: Path) -> None:
    """Flush everything that was just written below the directory to the disk. Linux uses syncfs(2).
    Other systems use fsync(2) for each file and directory that changed within `RECENT_S`. Raises
    OSError."""
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


def open_file(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file that an agent may have made. Raises FileNotFoundError for anything else,
    because a pipe would block forever. `follow`: open the file that a link points to."""
    fd = os.open(
        path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    )
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(f"{path} is not a file")
    return os.fdopen(fd, "rb")


def read_file(path: Path, *, follow: bool = True) -> bytes:
    """Return the content of a regular file, as `open_file` opens it. Raises OSError."""
    with open_file(path, follow=follow) as file:
        return file.read()


def regular_files(top: Path) -> Iterator[Path]:
    """Yield the regular files below a directory of an agent. Symbolic links are skipped, because
    they may lead to any file. Special files are skipped, because reading them may block forever."""
    if top.is_symlink():
        return
    for folder, _, names in walk(top):
        for name in names:
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                yield file


def walk(
    top: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield what `os.walk` yields, top-down, without following links. Directories may be nested to
    any depth: an agent can make more levels than `os.walk` of Python 3.11 can enter."""
    waiting = [os.fspath(top)]
    while waiting:
        directory = waiting.pop()
        folders: list[str] = []
        names: list[str] = []
        try:
            with os.scandir(directory) as found:
                for each in found:
                    kind = folders if _is_folder(each) else names
                    kind.append(each.name)
        except OSError as error:
            if onerror is not None:
                onerror(error)
            continue
        yield directory, folders, names
        inner = [os.path.join(directory, name) for name in folders]  # noqa: PTH118
        waiting += [path for path in reversed(inner) if not os.path.islink(path)]  # noqa: PTH114


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def remove_tree(top: Path) -> None:
    """Delete a directory with everything in it, even directories whose modes forbid their owner to
    read them. Links are deleted, but not the files that they point to. Raises OSError.

    Each inner directory is first moved directly below `top`. So no path becomes too long, and no
    recursion too deep, however deep an agent has nested directories (`shutil.rmtree` has both
    limits). A mount point cannot be moved, so no other volume is entered.
    """
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        fd = _opened(directory)
        try:
            with os.scandir(fd) as found:
                entries = list(found)
            for each in entries:
                if each.is_dir(follow_symlinks=False):
                    waiting.append(_moved_up(each.name, fd, top))
                else:
                    os.unlink(each.name, dir_fd=fd)
        finally:
            os.close(fd)
        if directory != top:
            directory.rmdir()
    top.rmdir()


def _opened(directory: Path) -> int:
    """Open a directory, and change its mode so that its entries can be read and removed. Return its
    descriptor. Raises OSError, for example if the directory is a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(directory, flags)
    except PermissionError:
        directory.chmod(0o700)
        fd = os.open(directory, flags)
    os.fchmod(fd, 0o700)
    return fd


def _moved_up(name: str, above: int, top: Path) -> Path:
    """Move a directory directly below `top`. `name` is the directory's name in the open directory
    `above`. Return its new path. Raises OSError."""
    inode = os.stat(name, dir_fd=above, follow_symlinks=False).st_ino
    target = top / f".{time.time_ns()}-{inode}"
    try:
        os.rename(name, target, src_dir_fd=above)
    except PermissionError:
        # A directory cannot be moved to another parent directory while its owner may not write to
        # it.
        change_mode(name, above, lambda mode: 0o700 if stat.S_ISDIR(mode) else None)
        os.rename(name, target, src_dir_fd=above)
    return target


def _changed(directory: Path, since: float) -> Iterator[str]:
    for above, _, names in walk(directory):
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
        # The file is gone, or its mode does not even let its owner open it. git and agents write
        # only readable files, so all of their files are flushed.
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def umask() -> int:
    """Return this process's umask without changing it. umask(2) would change it."""
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
    """Change the mode of an entry of the open directory `above`. `change` gets the current
    st_mode and returns the new mode, or None to leave it unchanged. Links are not followed.
    Raises OSError."""
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
        # The file's mode does not even let its owner open it, so the mode is changed by the file's
        # name. If a link replaced the file at this moment, the link would be followed.
        os.chmod(name, mode, dir_fd=above)
        return
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def path_in(above: int, directory: Path, name: str) -> Path:
    """Return a path of an entry of the open directory `above`, whose path is `directory`. On Linux
    the result stays valid if the directory is renamed."""
    if system.IS_PORTABLE:
        return directory / name
    return Path(f"/proc/self/fd/{above}/{name}")


def scratch_file() -> IO[bytes]:
    """Return an open file without a name. On Linux it is in memory."""
    if system.IS_PORTABLE:
        import tempfile

        return tempfile.TemporaryFile()
    return os.fdopen(os.memfd_create("stdin"), "w+b")


def allocate(fd: int, size: int) -> None:
    """Reserve disk space for the first `size` bytes of a file. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    piece = bytes(1 << 20)
    for at in range(0, size, len(piece)):
        os.pwrite(fd, piece[: size - at], at)


def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
