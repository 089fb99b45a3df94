"""Small capsules for tests, made part by part."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from perdure.capsule import container
from perdure.capsule.container import frame, part_of
from perdure.capsule.manifest import CapsuleConversation, CapsuleFile, Manifest


@dataclass
class Given:
    """The contents of files, by their digests."""

    known: dict[str, bytes] = field(default_factory=dict)

    def file(self, name: str, content: bytes, size: int = 1000) -> CapsuleFile:
        pieces = [content[at : at + size] for at in range(0, len(content), size)]
        for piece in pieces:
            self.known[part_of(piece).sha256] = piece
        return CapsuleFile(
            name, len(content), hashlib.sha256(content).hexdigest(), tuple(map(part_of, pieces))
        )

    def parts(self, file: CapsuleFile) -> Iterator[bytes]:
        return (self.known[part.sha256] for part in file.parts)

    def frames(self, file: CapsuleFile) -> Iterator[bytes]:
        return map(frame, self.parts(file))


def manifest(given: Given, **fields: Any) -> Manifest:
    """Return a manifest with a run's record, a journal and a conversation of a few parts."""
    talk = CapsuleConversation(
        agent="claude",
        id="01234567-89ab-cdef-0123-456789abcdef",
        main=given.file("main", b'{"type":"user"}\n' * 300),
        beside=(given.file("beside/tool-results/a b.txt", bytes(range(256)) * 9),),
    )
    usual: dict[str, Any] = {
        "format": 1, "perdure": "0.1.0", "run": "0" * 32, "name": "task", "agent": "claude", "number": 3, "attempt": 1,
        "at": 1_800_000_000_000, "story": given.file("run.json", b"{}"), "journal": given.file("journal.jsonl", b""),
        "conversations": (talk,),
    }  # fmt: skip
    return Manifest(**{**usual, **fields})


def capsule(**fields: Any) -> bytes:
    """Return a complete capsule."""
    given = Given()
    target = io.BytesIO()
    container.write(target, manifest(given, **fields), given)
    return target.getvalue()
