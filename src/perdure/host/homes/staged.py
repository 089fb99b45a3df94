"""Copies on their way: complete, compared with what they were made from, durable, and under no name
that an agent reads.

The stage lies on the file system of the place that they go to, so that putting them there is a
rename. A staged file is named by the hash of its path; what a killed call left there is made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.host.homes.inventory import PIECE, HomeThing, hash_of, open_file, side, unchanged

RESERVE = 16 << 20
"""Bytes that a move leaves free."""


class HomeStage:
    """A directory for copies; made when the first one comes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def place(self, thing: HomeThing) -> Path:
        return self.directory / hashlib.sha256(os.fsencode(thing.name)).hexdigest()[:40]

    def require_room(self, things: Sequence[HomeThing]) -> None:
        """Raises WorkspaceError before anything is written, if the copies cannot fit."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed = sum(thing.bytes for thing in things)
        space = os.statvfs(self.directory)
        free = space.f_bavail * space.f_frsize
        if needed and needed + RESERVE > free:
            raise WorkspaceError(
                f"There is no room for {needed >> 20} MiB at {self.directory.parent}: {free >> 20} "
                "MiB are free. Nothing was changed.",
                "Free space, or choose another volume.",
            )

    def copy(self, thing: HomeThing) -> None:
        """Copies a file with its sides, and compares. Raises Conflict if it is written to
        meanwhile, OSError as the system says."""
        place = self.place(thing)
        for suffix in thing.sides:
            copy_file(side(thing.path, suffix), side(place, suffix))
        for suffix in {"-wal", "-journal"} - set(thing.sides):
            side(place, suffix).unlink(missing_ok=True)
        copy_file(thing.path, place)

    def close(self) -> None:
        """Takes the stage away, with copies that went nowhere: what they were made from is where it
        was."""
        if self.directory.is_dir():
            for path in list(self.directory.iterdir()):
                path.unlink()
            self.directory.rmdir()


def copy_file(source: Path, target: Path) -> None:
    """A copy with rights and times, compared with its source before it gets its name."""
    part = target.with_name(f"{target.name}.part")
    fd = open_file(source)
    try:
        before = os.fstat(fd)
        wanted = _write(fd, part)
        unchanged(source, before, os.fstat(fd))
    finally:
        os.close(fd)
    if hash_of(part) != wanted:
        raise WorkspaceError(
            f"The copy of {source} is not what was written. Nothing was changed.",
            "Check the volume's disk.",
        )
    part.chmod(before.st_mode & 0o777)
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    part.replace(target)


def _write(source: int, part: Path) -> str:
    """Copies the descriptor into the file, through to the disk and out of the cache. Returns the
    hash of what was read."""
    digest = hashlib.sha256()
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while piece := os.read(source, PIECE):
            digest.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
        os.posix_fadvise(
            fd, 0, 0, os.POSIX_FADV_DONTNEED
        )  # so that the comparison reads what the disk has
    finally:
        os.close(fd)
    return digest.hexdigest()
