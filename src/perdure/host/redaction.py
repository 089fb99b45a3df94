"""Keeps secrets out of what perdure writes: events, copies of transcripts, logs that are no longer
written to.

The secrets are the values of the environment's variables whose names say so. Each is replaced by as
many asterisks as it has bytes, so that sizes and places stay what they were. Called by `attempt`
for every event and file; the agent's own files are not touched. What cannot be seen: a secret that
the agent changed before it wrote it down.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from urllib.parse import quote, quote_plus

from perdure.lateclass import dataclass

TELLING = re.compile(
    r"KEY(?!_ID$)|TOKEN(?!_(?:HOST|USER)$)|SECRET|PASSW|CREDENTIAL|AUTH(?!OR_)|COOKIE",
    re.IGNORECASE,
)
"""But not who has it (AWS_ACCESS_KEY_ID, PERDURE_GIT_TOKEN_USER) and what for
(PERDURE_GIT_TOKEN_HOST, which every message about the forge would miss): those may be plain words.
And not GIT_AUTHOR_NAME."""
SHORTEST = 8
"""A shorter value is not replaced: it could be any word."""


@dataclass(frozen=True, slots=True)
class Redactor:
    """Replaces the secrets of one environment."""

    pattern: re.Pattern[bytes] | None = None
    reach: int = 0
    """So many bytes before a place may belong to a secret that goes on after it."""
    forms: frozenset[bytes] = field(default=frozenset(), repr=False)
    """The secrets, as they are written down."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Redactor:
        """For the secrets in these variables, plain and as JSON, URLs and base64 write them."""
        forms: set[bytes] = set()
        for name, value in environ.items():
            telling = TELLING.search(name) and len(value) >= SHORTEST
            # `Path` raises, with the value, for one that no file could be called.
            if telling and not os.path.exists(value):  # noqa: PTH110
                forms |= set(_forms(value))
        return _replacing(frozenset(forms))

    def also(self, environ: Mapping[str, str]) -> Redactor:
        """For the secrets in these variables besides."""
        return _replacing(self.forms | Redactor.of(environ).forms)

    def bytes(self, content: bytes) -> bytes:
        """The content without secrets, of the same length."""
        return self.pattern.sub(_stars, content) if self.pattern else content

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self.pattern is None:
            return text
        return self.bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def file(self, path: Path) -> int:
        """Replaces the secrets in a file that nobody writes to any more, in place. Returns how many
        there were."""
        if self.pattern is None or not path.is_file() or not path.stat().st_size:
            return 0
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            found = [match.span() for match in self.pattern.finditer(view)]
            for start, end in found:
                view[start:end] = b"*" * (end - start)
            if found:
                view.flush()
        return len(found)


def _replacing(forms: frozenset[bytes]) -> Redactor:
    if not forms:
        return Redactor()
    # The longest first: one secret may begin as another does.
    pattern = re.compile(
        b"|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    )
    return Redactor(pattern, max(map(len, forms)), forms)


def _forms(value: str) -> Iterator[bytes]:
    """A secret as it is written down: plain, in JSON, in URLs, and in base64 of either alphabet,
    also inside of a longer text (a password after its user's name)."""
    raw = value.encode("utf-8", "surrogateescape")
    yield from (raw, json.dumps(value)[1:-1].encode())
    yield from (quote(value, safe=safe, errors="replace").encode() for safe in ("", "/"))
    yield quote_plus(value, errors="replace").encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield from (encode(raw), encode(raw).rstrip(b"="))
        for before in range(3):
            # The letters that no neighbour has a bit in.
            yield encode(bytes(before) + raw)[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]


NO_SECRETS = Redactor()
"""Replaces nothing."""


def _stars(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[0])
