"""Looks for secrets in what is to leave the machine: known shapes of tokens, and the exact values
in this environment.

`assembly` lets it read every stream once: what is found is told by place, line and kind, never by
value. A stream that is to be redacted comes out with as many asterisks as the secret had bytes, so
sizes and places stay what they were. What cannot be seen: a secret that was changed, cut in two or
packed before it was written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Protocol

from perdure.capsule.tokens import LONGEST, found
from perdure.errors import CapsuleError
from perdure.host.redaction import NO_SECRETS, Redactor
from perdure.lateclass import dataclass

WINDOW = 4 << 20
FROM_HERE = "value of a variable"
SHOWN = 20


class Readable(Protocol):
    """Something to read from, in pieces."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SecretFinding:
    """A secret: where it stands, and what kind it is. `line` counts from 1."""

    place: str
    line: int
    kind: str
    file: str = ""
    """Its name in a checkpoint's tree, where it stands in a file of the workdir: those are never
    changed, only left out."""


@dataclass(slots=True)
class Scan:
    """One search through many streams, and what it found."""

    redactor: Redactor = NO_SECRETS
    keep: bool = False
    """Streams come out as they are; what is in them is noted all the same."""
    findings: list[SecretFinding] = field(default_factory=list)

    def over(self, place: str, source: Readable) -> Iterator[bytes]:
        """The stream without its secrets, piece by piece; each secret is noted once."""
        held, line = b"", 1
        while True:
            piece = source.read(WINDOW)
            held += piece
            spans = self._spans(held)
            # What begins shortly before the end may not be all of it yet.
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

    def look(self, place: str, content: bytes, file: str = "") -> None:
        """Notes what stands in a content that is in memory whole."""
        for start, _, kind in self._spans(content):
            self.findings.append(
                SecretFinding(place, content.count(b"\n", 0, start) + 1, kind, file)
            )

    def _spans(self, content: bytes) -> list[tuple[int, int, str]]:
        """Where secrets stand, in order, without overlaps."""
        spans = [(start, end, kind) for kind, start, end in found(content)]
        if self.redactor.pattern is not None:
            spans += [
                (*match.span(), FROM_HERE) for match in self.redactor.pattern.finditer(content)
            ]
        joined: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(spans):
            if joined and start < joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1]), joined[-1][2]
            else:
                joined.append((start, end, kind))
        return joined


def table(findings: list[SecretFinding]) -> str:
    """Where the secrets stand, a line each, for a person."""
    lines = [f"  {each.place}, line {each.line}: {each.kind}" for each in findings[:SHOWN]]
    return "\n".join(
        [*lines, *([f"  and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else [])]
    )


class SecretsFound(CapsuleError):
    """Nothing was written, because secrets would have gone with it. `findings` says where they
    stand."""

    exit_code = 3

    def __init__(self, findings: list[SecretFinding], hint: str) -> None:
        count = f"{len(findings)} secret(s)" if len(findings) > 1 else "a secret"
        super().__init__(
            f"{count} would leave this machine; nothing was written\n{table(findings)}", hint
        )
        self.findings = findings
