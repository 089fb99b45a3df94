"""Watches the free space of volumes. It warns early, refuses new work before a disk is full, and
keeps a ballast file whose space can be freed.

perdure survives a full disk as long as its own database can write, and SQLite needs space even to
delete. So new work is refused early, running work may finish, and reading always works. In
addition, the ballast, a placeholder file next to the database, is emptied when space runs out. The
next check creates it again if there is enough space.

This module also knows the types of file systems. `store.sqlite` refuses some of them for the
database. `was_changed_since` compares times only where both file systems use the same clock.

`service` asks `Volumes` before it accepts a task, `worker` before it claims an attempt. The store
asks `Ballast` before a transaction, and after a transaction that failed for lack of space.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from perdure.errors import DiskFull
from perdure.host import system

MOUNTS = Path("/proc/self/mountinfo")
KERNEL_CLOCK = frozenset("bcachefs btrfs ext2 ext3 ext4 f2fs overlay tmpfs xfs zfs".split())
"""Types of file systems that take the times of their files from this kernel's clock. A network file
system may take them from its server, and FUSE from any program."""
NAME = "ballast"
NEEDED = 8 * 1024**2
"""Free space that a transaction may need, in bytes. It includes the log that the transaction may
have to write back."""
FEW_FILES = 10_000
WARN_ABOVE = 1.5
"""Factor by which `refuse_bytes` is multiplied to get the threshold for a warning."""


class DiskRoom(Struct, frozen=True):
    """Free and total space of the volume that contains a path, in bytes and in number of files. The
    total is 0 if the volume has no limit."""

    path: Path
    free: int
    size: int
    files_free: int
    files: int

    @property
    def percent(self) -> float:
        if self.size:
            return 100 * self.free / self.size
        return 100.0

    def is_below(self, percent: float, size: float) -> bool:
        """Return whether the volume is short of space. The free share must be below `percent`. In
        addition, the free bytes must be below `size`, or there must be room for only a few more
        files. The share alone is not enough, because a tenth of a large disk is much space."""
        few_files = bool(self.files) and self.files_free < min(
            self.files * percent / 100, FEW_FILES
        )
        return bool(self.size) and self.percent < percent and (self.free < size or few_files)

    def __str__(self) -> str:
        return (
            f"{self.free / 1024**2:,.0f} MB ({self.percent:.1f} %) of the volume of {self.path} "
            "are free"
        )


def file_system(directory: Path, mounts: Path = MOUNTS) -> str:
    """Return the type of the file system of a path; empty if unknown. `mounts` is the kernel's list
    of mounts on Linux (proc(5))."""
    try:
        known = system.mounts(mounts)
    except OSError:
        return ""
    real = os.path.realpath(directory)
    best, kind = -1, ""
    for point, of_point in known:
        inside = point == "/" or real == point or real.startswith(point + "/")
        # If two mounts share a mount point, the later one hides the earlier.
        if inside and len(point) >= best:
            best, kind = len(point), of_point
    return kind


@lru_cache(maxsize=1024)
def _kind(device: int, directory: Path) -> str:
    """Return the type of the file system of a directory. The result is cached, because a workdir
    may have thousands of files. `device`: the device number of the file system. It is part of the
    cache's key, because it changes if another file system is mounted there."""
    return file_system(directory)


def was_changed_since(path: Path, mark: Path) -> bool | None:
    """Return whether the file `path` was changed after perdure wrote the file `mark`. A change of
    its name or mode counts too. Return None if that is unknown, because the two files are on file
    systems that may use different clocks. Raises OSError."""
    seen, marked = path.lstat(), mark.stat()
    if seen.st_dev != marked.st_dev:
        kinds = {_kind(seen.st_dev, path.parent), _kind(marked.st_dev, mark.parent)}
        if not kinds <= KERNEL_CLOCK:
            return None
    at = marked.st_mtime_ns
    # Some file systems store whole seconds only, such as ext4 with inodes of 128 bytes.
    if seen.st_ctime_ns % 1_000_000_000 == 0:
        at -= at % 1_000_000_000
    return seen.st_ctime_ns >= at


def free_space(path: Path) -> DiskRoom:
    """Return the free space at a path, or at its nearest existing parent. Raises OSError if the
    file system cannot be queried."""
    for each in (path, *path.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.statvfs(each)
            unit = found.f_frsize
            return DiskRoom(
                path, found.f_bavail * unit, found.f_blocks * unit, found.f_favail, found.f_files
            )
    raise FileNotFoundError(str(path))


class Volumes(Struct, frozen=True, kw_only=True):
    """Thresholds for free space, and the paths that are watched. Without paths, no work is
    refused."""

    places: tuple[Path, ...] = ()
    warn: float = 15.0
    refuse: float = 10.0
    refuse_bytes: int = 2 * 1024**3
    ballast: Ballast | None = None

    def crowded(self, more: Sequence[Path] = ()) -> str:
        """Return, as a sentence, why no new work may begin; "" if there is enough space. `more`:
        additional paths to check."""
        for path in (*self.places, *more):
            with suppress(OSError):
                if self.refuse and (found := free_space(path)).is_below(
                    self.refuse, self.refuse_bytes
                ):
                    return f"The disk is nearly full: only {found}"
        return ""

    def check(self, more: Sequence[Path] = ()) -> None:
        """Raise DiskFull if no new work may begin. Otherwise create the ballast if it is
        missing."""
        if why := self.crowded(more):
            raise DiskFull(
                why,
                "free some space (perdure du, perdure gc), then try again; running attempts "
                "continue, and nothing is lost",
            )
        if self.ballast is not None:
            self.ballast.make(spare=self.refuse_bytes)

    def warnings(self, more: Sequence[Path] = ()) -> list[str]:
        """Return a sentence for each volume that has little free space left."""
        found = []
        for path in (*self.places, *more):
            with suppress(OSError):
                if (known := free_space(path)).is_below(self.warn, self.refuse_bytes * WARN_ABOVE):
                    found.append(f"only {known}")
        return list(dict.fromkeys(found))


class Ballast(Struct, frozen=True):
    """A placeholder file of `size` allocated bytes, in the directory of the database. Size 0 means
    no ballast."""

    directory: Path
    size: int

    @property
    def path(self) -> Path:
        return self.directory / NAME

    def make(self, spare: int = 0) -> bool:
        """Create the file if it is missing and the volume has enough space. After that, at least
        `spare` bytes must remain free, or a tenth of the volume if that is less.

        Return whether the file is there. Never raises, because the file is not essential.
        """
        try:
            if self.path.stat().st_size >= self.size:
                return True
        except OSError:
            pass
        if not self.size:
            return False
        from perdure.host.system.files import allocate

        staged = self.path.with_name(f"{NAME}.{os.getpid()}.new")
        try:
            found = free_space(self.directory)
            if found.free - self.size < min(spare, found.size // 10) + NEEDED:
                return False
            fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                allocate(fd, self.size)
            finally:
                os.close(fd)
            staged.replace(self.path)
            return True
        except OSError:
            with suppress(OSError):
                staged.unlink()
            return False

    def give_up(self) -> bool:
        """Truncate the file, so that its space becomes free. Return whether it occupied any space
        before."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            taken = os.fstat(fd).st_blocks > 0
            os.ftruncate(fd, 0)
            # The space of a truncated file is free only after the file system has written its
            # journal.
            os.fsync(fd)
            return taken
        except OSError:
            return False
        finally:
            os.close(fd)

    def ease(self) -> None:
        """Empty the ballast if a transaction might not find enough space."""
        with suppress(OSError):
            if free_space(self.directory).free < NEEDED:
                self.give_up()
