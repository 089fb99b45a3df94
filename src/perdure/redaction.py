"""Keeps secrets out of what perdure writes: events, copies of transcripts, logs that are no longer written to.

The secrets are the values of the environment's variables whose names say so. Each is replaced by as many asterisks as it has
bytes, so that sizes and places stay what they were. Called by `attempt` for every event and file; the agent's own files are not
touched. What cannot be seen: a secret that the agent changed before it wrote it down.
"""

from __future__ import annotations

import base64
import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

TELLING = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
SHORTEST = 8
"""A shorter value is not replaced: it could be any word."""


@dataclass(frozen=True, slots=True)
class Redactor:
    """Replaces the secrets of one environment."""

    pattern: re.Pattern[bytes] | None = None
    reach: int = 0
    """So many bytes before a place may belong to a secret that goes on after it."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Redactor:
        """For the secrets in these variables, plain and as JSON, URLs and base64 write them."""
        forms: set[bytes] = set()
        for name, value in environ.items():
            if TELLING.search(name) and len(value) >= SHORTEST and not Path(value).exists():
                raw = value.encode("utf-8", "surrogateescape")
                forms |= {raw, json.dumps(value)[1:-1].encode(), quote(value, safe="", errors="replace").encode(), base64.b64encode(raw)}
        if not forms:
            return cls()
        return cls(re.compile(b"|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))), max(map(len, forms)))

    def bytes(self, content: bytes) -> bytes:
        """The content without secrets, of the same length."""
        return self.pattern.sub(_stars, content) if self.pattern else content

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self.pattern is None:
            return text
        return self.bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def file(self, path: Path) -> int:
        """Replaces the secrets in a file that nobody writes to any more, in place. Returns how many there were."""
        if self.pattern is None or not path.is_file() or not path.stat().st_size:
            return 0
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            found = [match.span() for match in self.pattern.finditer(view)]
            for start, end in found:
                view[start:end] = b"*" * (end - start)
            if found:
                view.flush()
        return len(found)


NO_SECRETS = Redactor()
"""Replaces nothing."""


def _stars(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[0])
