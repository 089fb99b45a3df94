"""The capsule as one file: a magic number, the SHA-256 of the manifest, the manifest, then the
parts of all files, in the manifest's order.

The manifest and each part are zstd frames. The length of a frame (four bytes, big-endian) is
written before it. Names of the files exist only in the manifest, so nothing else in the capsule can
mislead an unpacker. A capsule is written and read in one pass, so a pipe works. Equal contents give
equal bytes. docs/decisions says why the format is neither tar nor zip.

`frame` and `unframe` encode and decode a part. `objects` uses them too, for a checkpoint store.

A part has at most 4 MiB, so writer and reader need little memory. A frame may decompress to at most
100 times its size. If the frame of a part is too small for that, the writer adds a skippable frame
as padding, which every zstd ignores. The library zstandard is imported late, because only the extra
`perdure[capsule]` installs it.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol

from perdure.capsule import manifest as manifests
from perdure.capsule.manifest import LONGEST_MANIFEST, PART, CapsuleFile, Manifest, Part
from perdure.errors import CapsuleError
from perdure.host.extras import install_command

if TYPE_CHECKING:
    import zstandard

RATIO = 100
LEVEL = 3
_SKIPPABLE = 0x184D2A50
"""Magic number of a skippable frame (RFC 8878, 3.1.2)."""

_local = threading.local()


def part_of(content: bytes) -> Part:
    """Return the Part (SHA-256 and size) that identifies this content."""
    return Part(hashlib.sha256(content).hexdigest(), len(content))


def frame(content: bytes) -> bytes:
    """Return the content compressed as a frame. With the same version of the library, the same
    content always gives the same bytes."""
    packed: bytes = _tools()[0].compress(content)
    short = -(-len(content) // RATIO) - len(packed)
    if short > 0:
        return packed + struct.pack("<II", _SKIPPABLE, short) + bytes(short)
    return packed


def unframe(packed: bytes, part: Part, what: str = "a part") -> bytes:
    """Return the content of a frame. Raises CapsuleError if the content is not exactly this part.
    Never decompresses more than the size of the part. `what` names the part in the error."""
    content = unfold(packed, part.size, what)
    if len(content) != part.size or hashlib.sha256(content).hexdigest() != part.sha256:
        raise CapsuleError(
            f"{what} differs from the manifest: it was changed or damaged",
            "get the capsule again",
        )
    return content


def unfold(packed: bytes, most: int, what: str) -> bytes:
    """Return the decompressed content of a frame. Raises CapsuleError if the frame is damaged or
    has more than `most` bytes of content. `what` names the frame in the error."""
    library = zstd()
    try:
        size = library.frame_content_size(packed)
        if not 0 <= size <= most or size > RATIO * len(packed):
            raise CapsuleError(
                f"{what} would unpack to more than the limit",
                "nothing was imported; do not trust its source",
            )
        content: bytes = _tools()[1].decompress(packed, max_output_size=most, allow_extra_data=True)
    except library.ZstdError as error:
        raise CapsuleError(f"{what} is damaged: {error}", "get the capsule again") from error
    return content


def zstd() -> Any:
    """Return the zstandard module. Raises CapsuleError if it is not installed."""
    try:
        import zstandard
    except ImportError:
        raise CapsuleError(
            "capsules need the library zstandard, which is not installed",
            install_command("capsule"),
        ) from None
    return zstandard


def _tools() -> tuple[zstandard.ZstdCompressor, zstandard.ZstdDecompressor]:
    """Return the compressor and the decompressor of this thread. They are not thread-safe, so each
    thread has its own."""
    if not hasattr(_local, "tools"):
        library = zstd()
        # The window of the decompressor is limited to 8 MiB. A part has at most 4 MiB, so a larger
        # window would only cost memory.
        compressor = library.ZstdCompressor(
            level=LEVEL, write_checksum=False, write_content_size=True
        )
        _local.tools = compressor, library.ZstdDecompressor(max_window_size=8 << 20)
    tools: tuple[zstandard.ZstdCompressor, zstandard.ZstdDecompressor] = _local.tools
    return tools


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
