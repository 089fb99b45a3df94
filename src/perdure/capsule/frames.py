"""Encodes parts as zstd frames, for a capsule and for an object store.

Each frame contains one part of at most 4 MiB, so writer and reader need little memory. A frame may
decompress to at most 100 times its size. If the frame of a part is too small for that, the writer
adds a skippable frame as padding, which every zstd ignores. zstandard is imported late, because it
comes with the extra `perdure[capsule]`.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from typing import TYPE_CHECKING, Any

from perdure.capsule.manifest import Part
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
    Never decompresses more than the size of the part."""
    content = unfold(packed, part.size, what)
    if len(content) != part.size or hashlib.sha256(content).hexdigest() != part.sha256:
        raise CapsuleError(
            f"{what} differs from the manifest: it was changed or damaged",
            "get the capsule again",
        )
    return content


def unfold(packed: bytes, most: int, what: str) -> bytes:
    """Return the decompressed content of a frame. Raises CapsuleError if the frame is damaged or
    has more than `most` bytes of content."""
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
