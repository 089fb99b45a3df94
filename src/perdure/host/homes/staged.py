"""Makes temporary copies of files: complete, compared with their source, durable, and under names
that no agent reads.

The staging directory is on the same file system as the final path, so a copy is moved to its final
path by a rename. A staged file is named by the hash of its path. Files that a killed call left in
the staging directory are overwritten.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.host.homes.inventory import PIECE, HomeEntry, hash_of, open_file, side, unchanged

RESERVE = 16 << 20
"""Space that must remain free after the copies, in bytes."""


class HomeStage:
    """A staging directory for copies. It is created when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def place(self, thing: HomeEntry) -> Path:
        return self.directory / hashlib.sha256(os.fsencode(thing.name)).hexdigest()[:40]

    def require_room(self, things: Sequence[HomeEntry]) -> None:
        """Raise WorkspaceError if there is not enough space for the copies. Call it before
        copying."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed = sum(thing.bytes for thing in things)
        space = os.statvfs(self.directory)
        free = space.f_bavail * space.f_frsize
        if needed and needed + RESERVE > free:
            raise WorkspaceError(
                f"There is no space for {needed >> 20} MiB in {self.directory.parent}: "
                f"{free >> 20} "
                "MiB are free. Nothing was changed.",
                "Free space, or choose another volume.",
            )

    def copy(self, thing: HomeEntry) -> None:
        """Copy a file and the files that belong to it, and compare the copies with the originals.
        Raises Conflict if the file changes meanwhile, and OSError."""
        place = self.place(thing)
        for suffix in thing.sides:
            copy_file(side(thing.path, suffix), side(place, suffix))
        for suffix in {"-wal", "-journal"} - set(thing.sides):
            side(place, suffix).unlink(missing_ok=True)
        copy_file(thing.path, place)

    def close(self) -> None:
        """Remove the staging directory. Copies that were not moved to their final paths are deleted
        with it."""
        if self.directory.is_dir():
            for path in list(self.directory.iterdir()):
                path.unlink()
            self.directory.rmdir()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its mode and times. The copy is compared with the original before it is
    renamed to `target`."""
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
            f"The copy of {source} differs from the original. Nothing was changed.",
            "Check the volume's disk.",
        )
    part.chmod(before.st_mode & 0o777)
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    part.replace(target)


def _write(source: int, part: Path) -> str:
    """Copy an open file's content to `part`, flush it to the disk, and drop it from the page cache.
    Return the hash of the bytes that were read."""
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
        # Drop the copy from the page cache, so that the comparison reads it from the disk.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return digest.hexdigest()
