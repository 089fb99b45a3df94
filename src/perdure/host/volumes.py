"""Room on the volumes: a warning while there is still some, a refusal of new work before there is
none, and a ballast.

A full disk is survivable as long as perdure's own database can write: SQLite needs room even to
delete. So new work is refused early, what is at work may end, reading always goes on; and beside
the database lies a ballast, a file of nothing that is given up first. Nothing has to be done by
hand afterwards: the next look finds the room, and the ballast is made again.

`Volumes` is asked by `service` (before a task is accepted) and `worker` (before an attempt is
claimed); `Ballast` by the store, before a transaction and after one that found no room.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from perdure.errors import DiskFull
from perdure.lateclass import dataclass

NAME = "ballast"
NEEDED = 8 * 1024**2
"""With less than this free, a transaction (and the log that it may have to write back) may not
fit."""
FEW_FILES = 10_000
WARN_ABOVE = 1.5
"""A warning comes at so many times the bytes at which work is refused."""


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """What is free of the volume that a path lies on, in bytes and in files that can still be made;
    0 of 0 where it has no limit."""

    path: Path
    free: int
    size: int
    files_free: int
    files: int

    @property
    def percent(self) -> float:
        return 100 * self.free / self.size if self.size else 100.0

    def is_below(self, percent: float, size: float) -> bool:
        """Whether less than both is free: a tenth of a large disk is a lot."""
        few_files = bool(self.files) and self.files_free < min(
            self.files * percent / 100, FEW_FILES
        )
        return bool(self.size) and self.percent < percent and (self.free < size or few_files)

    def __str__(self) -> str:
        return (
            f"{self.free / 1024**2:,.0f} MB ({self.percent:.1f} %) of the volume of {self.path} "
            "are free"
        )


def room(path: Path) -> DiskRoom:
    """Raises OSError where not even the root can be asked. A path that is not there yet lies where
    its nearest parent does."""
    for each in (path, *path.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.statvfs(each)
            unit = found.f_frsize
            return DiskRoom(
                path, found.f_bavail * unit, found.f_blocks * unit, found.f_favail, found.f_files
            )
    raise FileNotFoundError(str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """The watermarks and the places that they hold for. Without places, nothing is ever refused."""

    places: tuple[Path, ...] = ()
    warn: float = 15.0
    refuse: float = 10.0
    refuse_bytes: int = 2 * 1024**3
    ballast: Ballast | None = None

    def crowded(self, more: Sequence[Path] = ()) -> str:
        """Why no new work may begin, as a sentence; empty if there is room."""
        for path in (*self.places, *more):
            with suppress(OSError):
                if self.refuse and (found := room(path)).is_below(self.refuse, self.refuse_bytes):
                    return f"The disk is nearly full: only {found}"
        return ""

    def check(self, more: Sequence[Path] = ()) -> None:
        """Raises DiskFull where no new work may begin. Makes the ballast again where there is room
        for it."""
        if why := self.crowded(more):
            raise DiskFull(
                why,
                "free some space (perdure du, perdure gc), then try again; what runs goes on, and "
                "nothing is lost",
            )
        if self.ballast is not None:
            self.ballast.make(spare=self.refuse_bytes)

    def warnings(self, more: Sequence[Path] = ()) -> list[str]:
        """A sentence for each place with little room."""
        found = []
        for path in (*self.places, *more):
            with suppress(OSError):
                if (known := room(path)).is_below(self.warn, self.refuse_bytes * WARN_ABOVE):
                    found.append(f"only {known}")
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Ballast:
    """A file of `size` bytes that are really taken, in the directory of the database. Size 0: there
    is none."""

    directory: Path
    size: int

    @property
    def path(self) -> Path:
        return self.directory / NAME

    def make(self, spare: int = 0) -> bool:
        """Makes it, if it is not there and the volume is roomy: `spare` bytes stay free, or nine
        tenths of what there is. Returns whether it is there. Never raises: a ballast that cannot be
        made is none."""
        try:
            if self.path.stat().st_size >= self.size:
                return True
        except OSError:
            pass
        if not self.size:
            return False
        staged = self.path.with_name(f"{NAME}.{os.getpid()}.new")
        try:
            found = room(self.directory)
            if found.free - self.size < min(spare, found.size // 10) + NEEDED:
                return False
            fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size)
            finally:
                os.close(fd)
            staged.replace(self.path)
            return True
        except OSError:
            with suppress(OSError):
                staged.unlink()
            return False

    def give_up(self) -> bool:
        """Frees its space. Returns whether there was any."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            taken = os.fstat(fd).st_blocks > 0
            os.ftruncate(fd, 0)
            # The space of a file that was cut is free once that is in the file system's own
            # journal.
            os.fsync(fd)
            return taken
        except OSError:
            return False
        finally:
            os.close(fd)

    def ease(self) -> None:
        """Gives it up where a transaction might not find room."""
        with suppress(OSError):
            if room(self.directory).free < NEEDED:
                self.give_up()
