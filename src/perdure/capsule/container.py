"""The capsule as one file: a mark, the manifest's SHA-256, the manifest, then the parts of all
files, in the manifest's order.

Each is a zstd frame with its length before it (four bytes, big-endian). There are no names, links,
modes or times outside of the manifest, so there is nothing that an unpacker could be led astray by.
Written and read in one pass, so a pipe will do; equal contents give equal bytes. No tar and no zip:
docs/decisions says why.
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
"""zstd's bound for what cannot be compressed is a 256th more."""


class CapsuleContents(Protocol):
    """Where the parts of a manifest's files come from."""

    def parts(self, file: CapsuleFile) -> Iterator[bytes]:
        """The contents of a file's parts, in order, each exactly as its digest says."""
        ...


class Frames(Protocol):
    """Where the frames of a manifest's files come from."""

    def frames(self, file: CapsuleFile) -> Iterator[bytes]:
        """The frames of a file's parts, in order."""
        ...


def write(target: IO[bytes], manifest: Manifest, frames: Frames) -> None:
    """Writes a whole capsule."""
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
    """A capsule that is read in its order, once. `manifest` is checked; each part is, before it is
    given."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        self._source, self._name = source, name
        if self._exactly(len(MAGIC)) != MAGIC:
            raise CapsuleError(
                f"{name} is no capsule", "capsules are made by perdure export NAME -o FILE"
            )
        digest = self._exactly(hashlib.sha256().digest_size)
        content = unfold(
            self._frame(LONGEST_MANIFEST // RATIO * 40), LONGEST_MANIFEST, f"the manifest of {name}"
        )
        if hashlib.sha256(content).digest() != digest:
            raise CapsuleError(f"the manifest of {name} is damaged", "get the capsule again")
        self.manifest = manifests.read(content)

    def parts(self, file: CapsuleFile) -> Iterator[bytes]:
        """The contents of a file's parts. The files must be asked for in the manifest's order, each
        to its end."""
        for part in file.parts:
            yield self._part(part, file)

    def end(self) -> None:
        """Raises CapsuleError if there is more in the file than the manifest says."""
        if self._source.read(1):
            raise CapsuleError(
                f"{self._name} goes on after its end",
                "nothing was imported; do not trust where it came from",
            )

    def _part(self, part: Part, file: CapsuleFile) -> bytes:
        return unframe(self._frame(LONGEST_FRAME), part, f"{file.name} in {self._name}")

    def _frame(self, longest: int) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if not 0 < length <= longest:
            raise CapsuleError(
                f"{self._name} is damaged: it holds a frame of {length} bytes",
                "get the capsule again",
            )
        return self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        content = self._source.read(length)
        # A pipe may give less than was asked for.
        while len(content) < length and (more := self._source.read(length - len(content))):
            content += more
        if len(content) < length:
            raise CapsuleError(f"{self._name} is cut off", "get the capsule again")
        return content


@contextmanager
def opened(name: str, source: IO[bytes]) -> Iterator[Capsule]:
    """A capsule from an open file or pipe."""
    try:
        yield Capsule(source, name)
    except OSError as error:
        raise CapsuleError(
            f"{name} cannot be read: {error.strerror or error}", "is it all there?"
        ) from error
