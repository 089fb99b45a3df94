"""The capsule as one file: a magic number, the manifest's SHA-256, the manifest, then the parts of
all files, in the manifest's order.

Each part is a zstd frame after its length (four bytes, big-endian). Names, links, modes and times
exist only in the manifest, so nothing else in the file can mislead an unpacker. The file is written
and read in one pass, so a pipe works; equal contents give equal bytes. docs/decisions says why the
format is neither tar nor zip.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from perdure.capsule import manifest as manifests
from perdure.capsule.frames import RATIO, frame, unfold, unframe
from perdure.capsule.manifest import LONGEST_MANIFEST, PART, CapsuleFile, Manifest, Part
from perdure.errors import CapsuleError

MAGIC = b"PERDURE\x01"
_LENGTH = struct.Struct(">I")
LONGEST_FRAME = PART + (PART >> 7) + 1024
"""Maximum size of a frame, in bytes. zstd lets incompressible data grow by at most 1/256. This
limit allows more than twice that."""


class CapsuleContents(Protocol):
    """A source of the parts of a manifest's files."""

    def parts(self, file: CapsuleFile) -> Iterator[bytes]:
        """Yield the contents of a file's parts, in order, each verified against its digest."""
        ...


class Frames(Protocol):
    """A source of the frames of a manifest's files."""

    def frames(self, file: CapsuleFile) -> Iterator[bytes]:
        """Yield the frames of a file's parts, in order."""
        ...


def write(target: IO[bytes], manifest: Manifest, frames: Frames) -> None:
    """Write the manifest and the frames of all its files to `target`, as one capsule."""
    content = manifests.encode(manifest)
    target.write(MAGIC + hashlib.sha256(content).digest())
    _put(target, frame(content))
    for file in manifest.files():
        for packed in frames.frames(file):
            _put(target, packed)


def _put(target: IO[bytes], packed: bytes) -> None:
    target.write(_LENGTH.pack(len(packed)))
    target.write(packed)


class Capsule:
    """A capsule that is read once, in order. `manifest` is verified; each part is verified before
    it is returned."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        self._source, self._name = source, name
        if self._exactly(len(MAGIC)) != MAGIC:
            raise CapsuleError(
                f"{name} is not a capsule", "capsules are made by perdure export NAME -o FILE"
            )
        digest = self._exactly(hashlib.sha256().digest_size)
        content = unfold(
            self._frame(LONGEST_MANIFEST // RATIO * 40), LONGEST_MANIFEST, f"the manifest of {name}"
        )
        if hashlib.sha256(content).digest() != digest:
            raise CapsuleError(f"the manifest of {name} is damaged", "get the capsule again")
        self.manifest = manifests.read(content)

    def parts(self, file: CapsuleFile) -> Iterator[bytes]:
        """Yield the contents of a file's parts. The files must be requested in the manifest's
        order, each to its end."""
        for part in file.parts:
            yield self._part(part, file)

    def end(self) -> None:
        """Raise CapsuleError if the file has data after its last part."""
        if self._source.read(1):
            raise CapsuleError(
                f"{self._name} has extra data after its end",
                "nothing was imported; do not trust its source",
            )

    def _part(self, part: Part, file: CapsuleFile) -> bytes:
        return unframe(self._frame(LONGEST_FRAME), part, f"{file.name} in {self._name}")

    def _frame(self, longest: int) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if not 0 < length <= longest:
            raise CapsuleError(
                f"{self._name} is damaged: it has a frame of {length} bytes",
                "get the capsule again",
            )
        return self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        content = self._source.read(length)
        # A pipe may return fewer bytes than requested.
        while len(content) < length and (more := self._source.read(length - len(content))):
            content += more
        if len(content) < length:
            raise CapsuleError(f"{self._name} is truncated", "get the capsule again")
        return content


@contextmanager
def open_capsule(name: str, source: IO[bytes]) -> Iterator[Capsule]:
    """Yield a Capsule that reads from an open file or pipe. Raises CapsuleError if the data cannot
    be read or is not a capsule."""
    try:
        yield Capsule(source, name)
    except OSError as error:
        raise CapsuleError(
            f"{name} cannot be read: {error.strerror or error}",
            "check whether the file is complete",
        ) from error
