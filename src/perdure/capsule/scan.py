"""Searches for secrets in data that leaves the machine: known shapes of tokens, and the exact
values of this environment's secrets.

`assembly` passes every stream through it once. Findings are reported by place, line and kind, never
by value. A redacted secret is replaced by as many asterisks as it had bytes, so sizes and positions
stay the same. Secrets that were transformed, split or compressed before they were written cannot be
found.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct, field

from perdure.capsule.tokens import LONGEST, find_tokens
from perdure.errors import CapsuleError
from perdure.host.redaction import NO_SECRETS, Redactor

WINDOW = 4 << 20
FROM_HERE = "value of a variable"
SHOWN = 20


class Readable(Protocol):
    """A source of bytes that is read in pieces."""

    def read(self, size: int, /) -> bytes: ...


class SecretFinding(Struct, frozen=True):
    """A secret that was found, described by its place and its kind. `line` is a line number from
    1."""

    place: str
    line: int
    kind: str
    file: str = ""
    """The file's path in the checkpoint's git tree, if the secret is in a file of the workdir, else
    empty. Secrets in such files are never redacted. The file can only be left out."""
    blob: str = ""
    """The id of the file's content in git. `file` is only one of the paths that have this content.
    """


class Scan(Struct):
    """A search for secrets in any number of streams. `findings` collects what it finds."""

    redactor: Redactor = NO_SECRETS
    keep: bool = False
    """Whether secrets are kept in the streams instead of being redacted. They are reported in any
    case."""
    findings: list[SecretFinding] = field(default_factory=list)

    def over(self, place: str, source: Readable) -> Iterator[bytes]:
        """Yield the stream in pieces, with secrets redacted unless `keep` is set. Record each
        secret once."""
        held, line = b"", 1
        while True:
            piece = source.read(WINDOW)
            held += piece
            spans = self._spans(held)
            # A secret that begins shortly before the end may be incomplete, so the last bytes are
            # searched again with the next piece.
            cut = len(held) if not piece else max(0, len(held) - LONGEST)
            for start, end, _ in spans:
                if start < cut < end:
                    cut = start
            clean = held[:cut] if self.keep or not spans else bytearray(held[:cut])
            for start, end, kind in spans:
                if end <= cut:
                    self.findings.append(
                        SecretFinding(place, line + held.count(b"\n", 0, start), kind)
                    )
                    if isinstance(clean, bytearray):
                        clean[start:end] = b"*" * (end - start)
            if clean:
                yield bytes(clean)
            line += held.count(b"\n", 0, cut)
            held = held[cut:]
            if not piece:
                return

    def look(self, place: str, content: bytes, file: str = "", blob: str = "") -> None:
        """Record the secrets in `content`. Unlike in `over`, the whole content is in memory. If the
        content is a file of the workdir, `file` is the file's path in the checkpoint's git tree,
        and `blob` is the id of the content in git."""
        for start, _, kind in self._spans(content):
            self.findings.append(
                SecretFinding(place, content.count(b"\n", 0, start) + 1, kind, file, blob)
            )

    def _spans(self, content: bytes) -> list[tuple[int, int, str]]:
        """Return start, end and kind of each secret, in order of their starts. Secrets that overlap
        are merged into one."""
        spans = [(start, end, kind) for kind, start, end in find_tokens(content)]
        if self.redactor.pattern is not None:
            for match in self.redactor.pattern.finditer(content):
                spans.append((*match.span(), FROM_HERE))
        joined: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(spans):
            if joined and start < joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1]), joined[-1][2]
            else:
                joined.append((start, end, kind))
        return joined


def table(findings: list[SecretFinding]) -> str:
    """Return a text with one line for each secret: its place, its line and its kind. The list is
    cut after `SHOWN` secrets."""
    lines = [f"  {each.place}, line {each.line}: {each.kind}" for each in findings[:SHOWN]]
    return "\n".join(
        [*lines, *([f"  and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else [])]
    )


class SecretsFound(CapsuleError):
    """Raised before anything is written, if secrets were found that no option covers. `findings`
    lists their places."""

    exit_code = 3

    def __init__(self, findings: list[SecretFinding], hint: str) -> None:
        if len(findings) > 1:
            count = f"{len(findings)} secret(s)"
        else:
            count = "a secret"
        super().__init__(
            f"{count} would leave this machine; nothing was written\n{table(findings)}", hint
        )
        self.findings = findings


def without_secrets(redactor: Redactor, text: str) -> str:
    """Return the text with each secret replaced by asterisks."""
    pieces = Scan(redactor).over("", io.BytesIO(text.encode("utf-8", "replace")))
    return b"".join(pieces).decode("utf-8", "replace")
