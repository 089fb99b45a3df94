"""Unpacks a capsule's files on this machine and verifies all of them before anything is used.
Called by `imports` and `fetch`.

All files go into a new directory that only its owner can enter. Their names there are numbers; each
file is created with `O_EXCL | O_NOFOLLOW`. Every part is verified before it is written, and every
file when it is complete. If anything is wrong, the whole directory is deleted. Only `imports` uses
the names in the manifest, after everything is verified.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from perdure.capsule.container import CapsuleContents
from perdure.capsule.manifest import CapsuleFile, Manifest
from perdure.errors import CapsuleError

MOST_BYTES = 64 << 30
"""Maximum unpacked size of a capsule, in bytes."""
LEFT_FREE = 256 << 20
"""Minimum free space on the disk after unpacking, in bytes."""


class VerifiedCapsule(Struct, frozen=True):
    """The verified files of a capsule, unpacked into a directory of this machine."""

    directory: Path
    numbers: dict[int, int]

    def path(self, file: CapsuleFile) -> Path:
        """Return the path at which a file of the manifest was unpacked."""
        return self.directory / str(self.numbers[id(file)])


@contextmanager
def verified(
    manifest: Manifest, contents: CapsuleContents, near: Path
) -> Iterator[VerifiedCapsule]:
    """Unpack and verify the files of the capsule, and yield them. They are in a private directory
    below `near`, which is deleted when the block ends. Raises CapsuleError."""
    refuse_too_large(manifest, near)
    directory = Path(tempfile.mkdtemp(prefix=".import-", dir=near))
    try:
        found = VerifiedCapsule(
            directory, {id(file): number for number, file in enumerate(manifest.files())}
        )
        for file in manifest.files():
            _fetch_file(file, contents, found.path(file))
        yield found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def refuse_too_large(manifest: Manifest, near: Path) -> None:
    """Raise CapsuleError if the capsule is larger than allowed, or does not fit on the disk."""
    size = manifest.size
    if size > MOST_BYTES:
        raise CapsuleError(
            f"the capsule would unpack to {size >> 30} GiB; at most {MOST_BYTES >> 30} GiB are "
            f"allowed",
            "nothing was imported",
        )
    free = shutil.disk_usage(near).free
    if 2 * size + LEFT_FREE > free:
        need, has = (2 * size + LEFT_FREE) >> 20, free >> 20
        raise CapsuleError(
            f"the disk under {near} has {has} MiB free; unpacking needs {need} MiB",
            "free some space, then try again",
        )


def _fetch_file(file: CapsuleFile, contents: CapsuleContents, place: Path) -> None:
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
            f"{file.name} differs from the manifest: it was changed or damaged",
            "get the capsule again",
        )
