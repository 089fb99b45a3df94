"""Locks, atomic writes and safe directories below the root, for the modules that make workdirs.

A lock file is never removed. Otherwise one process could hold the lock of the removed file while
another holds that of a new file of the same name. A lock belongs to the open file, not to the
process: every process that inherits the descriptor (git's children, an agent's shim) keeps the
lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import Conflict, InUse, WorkspaceError
from perdure.host import system
from perdure.host.system.files import flush
from perdure.model import Workspace
from perdure.workspace.identity import Places

BRIEF_WAIT_S = 2.0


def make_private(directory: Path) -> Path:
    """Make a directory of perdure's own that no other user can read. Raises WorkspaceError."""
    return make_directory(directory, 0o700)


def make_directory(directory: Path, mode: int = 0o777) -> Path:
    """Make a directory and its parents. Raises WorkspaceError if that fails, for example because a
    file has the same name."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"{directory} cannot be created: {error.strerror}.",
            "Check the root directory and its permissions.",
        ) from error
    return directory


def lock_workspace(
    places: Places, workspace: Workspace, holder: str, *, brief: bool = False
) -> int:
    """Take the workspace's lock without waiting for its holder, and return its descriptor. Raises
    InUse with a description of the holder. `holder` and `brief` describe this lock to the next
    caller: who holds it, and whether only for a moment.

    The lock is tried for a short time (`BRIEF_WAIT_S`), because a child of another thread or of a
    killed supervisor holds the parent's descriptors between fork and exec. On a busy machine, such
    a child held the lock for up to a third of a second.
    """
    fd = _open(places.lock(workspace.id))
    if not _lock(fd, BRIEF_WAIT_S):
        known, is_brief = _holder(fd)
        os.close(fd)
        raise InUse(
            f"{workspace.path} is in use{known}.",
            "Wait for it to end, or stop it first.",
            brief=is_brief,
        )
    note = json.dumps(
        {"pid": os.getpid(), "since": int(time.time()), "holder": holder, "brief": brief}
    ).encode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, note, 0)
    return fd


@contextlib.contextmanager
def hold_lock(lock: Path, timeout_s: float = 600.0) -> Iterator[int]:
    """Wait for the lock on the file `lock`, and yield its descriptor. Raises Conflict if the lock
    is not free after `timeout_s` seconds."""
    fd = _open(lock)
    try:
        if not _lock(fd, timeout_s):
            raise Conflict(
                f"{lock} was not free within {timeout_s:g} s.",
                "Check which perdure or git is still running there.",
            )
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    pause = 0.002
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def write(path: Path, text: str) -> None:
    """Write a small file atomically and durably. Raises OSError if that fails. No partial file
    remains."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with fresh.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file atomically, but not durably. After a power cut the file may be empty or
    missing, so its reader has to check its content. Raises OSError."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.write_text(text, encoding="utf-8", errors="surrogateescape")
    fresh.replace(path)


def sync(directory: Path) -> None:
    """Make the renames in a directory durable: they survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_all(path: Path) -> str:
    """Return the text of a file, as `read` does, with a limit of 1 GiB."""
    return read(path, 1 << 30)


def read(path: Path, cap: int = 1 << 16) -> str:
    """Return a file's text, up to `cap` bytes (default: 64 KiB). Empty if the file is missing or
    not regular: reading a pipe that an agent made might never end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return ""
        raise
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return os.fsdecode(os.read(fd, min(cap, max(found.st_size, 1 << 16))))
        return ""
    finally:
        os.close(fd)


def flush_each(*directories: Path) -> None:
    """Make everything that was just written below these directories durable. On Linux, each file
    system that holds one of the directories is flushed once. Raises OSError."""
    by_device = {path.stat().st_dev: path for path in directories}
    for directory in directories if system.IS_PORTABLE else by_device.values():
        flush(directory)


def quote_alternate(objects: Path) -> str:
    """Return the line that names this directory in a file `objects/info/alternates`. A path with
    unprintable characters is quoted; git 2.11 and newer can read the quoted form."""
    text = str(objects)
    if text.isprintable():
        return text
    quoted = "".join(map(_quoted_byte, os.fsencode(text)))
    return f'"{quoted}"'


def _quoted_byte(byte: int) -> str:
    if 32 <= byte < 127 and byte not in b'"\\':
        return chr(byte)
    return f"\\{byte:03o}"


def clear_locks(path: Path, *locks: Path) -> list[str]:
    """Remove lock files that a killed git left, unless a git process is running in `path`. Return a
    note for a person on each removed file."""
    found = [lock for lock in locks if os.path.lexists(lock)]
    if not found or git_works_in(path):
        return []
    for lock in found:
        lock.unlink(missing_ok=True)
    return [f"The stale lock of an ended git was removed: {lock.name}." for lock in found]


def is_real_directory(path: Path) -> bool:
    """Return whether the path is a directory and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _open(path: Path) -> int:
    make_private(path.parent)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise WorkspaceError(
            f"The lock {path} cannot be opened: {error.strerror}.",
            "Check the root directory and its permissions.",
        ) from error


def git_works_in(path: Path) -> bool:
    """Return whether a running git process has its current directory at or below the path."""
    for pid in system.pids():
        with contextlib.suppress(OSError):
            if system.name(pid).startswith("git"):
                at = system.current_directory(pid)
                if Path(at).is_relative_to(path):
                    return True
    return False


def _is_alive(pid: int) -> bool:
    """Return whether a process exists. Does not read /proc, which may hide processes of other users
    (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0


def _holder(fd: int) -> tuple[str, bool]:
    """Return a description of the process that holds the lock. Also return whether that process is
    alive and holds the lock only briefly."""
    try:
        note = json.loads(os.pread(fd, 4096, 0))
        pid, since, name = int(note["pid"]), int(note["since"]), str(note["holder"])
    except (ValueError, KeyError, TypeError):
        return "", False
    lives = _is_alive(pid)
    alive = "" if lives else ", which has ended, but its agent still runs"
    words = (
        f" by {name or 'perdure'} (process {pid}{alive}; since "
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))})"
    )
    return words, lives and note.get("brief") is True
