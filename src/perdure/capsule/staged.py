"""Brings a capsule's files onto this machine without trusting a byte of it, before anything is
used.

Everything goes into a fresh directory that only its owner can enter, under names of perdure's own
(numbers), each file made by `O_EXCL | O_NOFOLLOW`. Every part is checked before it is written and
every file when it is whole. If anything is wrong, the directory goes and nothing is left. What the
manifest calls the files matters only to `imports`, after all of it stood the test.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.capsule.container import CapsuleContents
from perdure.capsule.manifest import CapsuleFile, Manifest
from perdure.errors import CapsuleError
from perdure.lateclass import dataclass

MOST_BYTES = 64 << 30
"""A capsule of more unfolds to more than anybody's task."""
LEFT_FREE = 256 << 20
"""So much room the disk must have left when all is unpacked."""


@dataclass(frozen=True, slots=True)
class StagedCapsule:
    """The files of a capsule on this machine, all of them verified."""

    directory: Path
    numbers: dict[int, int]

    def path(self, file: CapsuleFile) -> Path:
        """Where a file of the manifest lies."""
        return self.directory / str(self.numbers[id(file)])


@contextmanager
def staged(manifest: Manifest, contents: CapsuleContents, near: Path) -> Iterator[StagedCapsule]:
    """All files of the capsule in a private directory below `near`, which is gone afterwards.
    Raises CapsuleError."""
    refuse_too_large(manifest, near)
    directory = Path(tempfile.mkdtemp(prefix=".import-", dir=near))
    try:
        found = StagedCapsule(
            directory, {id(file): number for number, file in enumerate(manifest.files())}
        )
        for file in manifest.files():
            _bring(file, contents, found.path(file))
        yield found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def refuse_too_large(manifest: Manifest, near: Path) -> None:
    """Raises CapsuleError for more than may be, or than fits."""
    size = manifest.size
    if size > MOST_BYTES:
        raise CapsuleError(
            f"the capsule would unpack to {size >> 30} GiB, more than the {MOST_BYTES >> 30} that "
            "are allowed",
            "nothing was imported",
        )
    free = shutil.disk_usage(near).free
    if 2 * size + LEFT_FREE > free:
        need, has = (2 * size + LEFT_FREE) >> 20, free >> 20
        raise CapsuleError(
            f"the disk under {near} has {has} MiB free, and unpacking needs {need}",
            "free some space, then try again",
        )


def _bring(file: CapsuleFile, contents: CapsuleContents, place: Path) -> None:
    digest = hashlib.sha256()
    try:
        fd = os.open(
            place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(fd, "wb") as target:
            for content in contents.parts(file):
                digest.update(content)
                target.write(content)
            size = target.tell()
    except OSError as error:
        raise CapsuleError(
            f"the capsule could not be unpacked in {place.parent}: {error.strerror}",
            "perdure doctor",
        ) from error
    if size != file.size or digest.hexdigest() != file.sha256:
        raise CapsuleError(
            f"{file.name} is not what the manifest says: it was changed or damaged",
            "get the capsule again",
        )
