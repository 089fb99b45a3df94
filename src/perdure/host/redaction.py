"""Keeps secrets out of the files that perdure writes (`Redactor`), and away from other processes
(`wipe_variables`).

The secrets are the values of environment variables whose names suggest a secret (`TELLING`). Each
byte of a secret is replaced by an asterisk, so that sizes and offsets do not change. `attempt`
calls the redactor for every event, for copies of transcripts and for finished logs. The agent's own
files are not changed. Limit: a secret that the agent transformed before writing it is not
recognized.

The memory of this process is hidden from other processes of the same user, above all from agents.

The command line calls `system.forbid_reading` before it loads anything else for a command that
holds secrets. `serve` calls `wipe_variables` after it has read the secrets in environment
variables. Guarantees, on Linux, after these calls: a process without CAP_SYS_PTRACE cannot trace
this process, and cannot read this process's environment, memory and open files below /proc. No core
file is written. Limits: an agent that runs as root has that capability, except in most containers.
Systems other than Linux hide nothing from processes of the same user.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

from msgspec import Struct

from perdure.host import system
from perdure.patterns import late_pattern

TELLING = late_pattern(
    r"KEY(?!_ID$)|TOKEN(?!_(?:HOST|USER)$)|SECRET|PASSW|CREDENTIAL|AUTH(?!OR_)|COOKIE",
    re.IGNORECASE,
)
"""Pattern of names of variables that contain a secret. Names that say whose secret it is
(AWS_ACCESS_KEY_ID, PERDURE_GIT_TOKEN_USER), or for which server (PERDURE_GIT_TOKEN_HOST), are
excluded. Their values may be ordinary words that occur in many messages. Names such as
GIT_AUTHOR_NAME, in which AUTH is only the beginning of AUTHOR, are excluded too."""
SHORTEST = 8
"""Minimum length of a value that is replaced, in characters. A shorter value could be any word."""


class Redactor(Struct, frozen=True):
    """Replaces secrets from environment variables with asterisks."""

    pattern: re.Pattern[bytes] | None = None
    reach: int = 0
    """Length of the longest encoded form of a secret, in bytes. If a text is cut, a secret that
    begins within this distance before the cut may continue after it."""
    forms: frozenset[bytes] = frozenset()
    """The secrets, in every encoding in which they may be written."""

    def __repr__(self) -> str:
        return f"Redactor(reach={self.reach!r})"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Redactor:
        """Return a redactor for the secrets in these variables. It recognizes them as plain text,
        and as encoded in JSON, URLs and base64."""
        forms: set[bytes] = set()
        for name, value in environ.items():
            telling = TELLING.search(name) and len(value) >= SHORTEST
            # A value that names an existing file is a path, not a secret. `os.path.exists` is used
            # because `Path.exists` raises for a value that cannot be a file name, and the error
            # contains the value.
            if telling and not os.path.exists(value):  # noqa: PTH110
                forms |= set(_forms(value))
        return _replacing(frozenset(forms))

    def also(self, environ: Mapping[str, str]) -> Redactor:
        """Return a redactor that also replaces the secrets in these variables."""
        return _replacing(self.forms | Redactor.of(environ).forms)

    def bytes(self, content: bytes) -> bytes:
        """Return the content with the secrets replaced, at the same length."""
        if self.pattern:
            return self.pattern.sub(_stars, content)
        return content

    def text(self, text: str) -> str:
        """Return the text with the secrets replaced."""
        if self.pattern is None:
            return text
        return self.bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def file(self, path: Path) -> int:
        """Replace the secrets in a file in place. Return the number of replacements. Call it only
        when no process writes to the file any more."""
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
    # The longest form comes first, because one secret may be the beginning of another, and the
    # first alternative that matches is used.
    pattern = re.compile(b"|".join(map(re.escape, sorted(forms, key=len, reverse=True))))
    return Redactor(pattern, max(map(len, forms)), forms)


def _forms(value: str) -> Iterator[bytes]:
    """Yield the forms in which a secret may be written: plain, in JSON, in URLs, and in both
    alphabets of base64. The base64 forms include those for a secret inside a longer text, such as a
    password after its user name."""
    raw = value.encode("utf-8", "surrogateescape")
    yield from (raw, json.dumps(value)[1:-1].encode())
    for safe in ("", "/"):
        yield quote(value, safe=safe, errors="replace").encode()
    yield quote_plus(value, errors="replace").encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield from (encode(raw), encode(raw).rstrip(b"="))
        for before in range(3):
            # Keep only the base64 letters that encode nothing but the secret. Letters at the edges
            # of the secret also contain bits of the bytes before and after it.
            yield encode(bytes(before) + raw)[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]


NO_SECRETS = Redactor()
"""A redactor that replaces nothing."""


def _stars(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[0])


_WORDS = 2
"""Number of words of a command line that `holders` returns."""


def wipe_variables(names: Collection[str]) -> None:
    """Remove variables from this process's environment, and overwrite their bytes in its memory.

    Removal from `os.environ` is not enough. /proc/PID/environ shows the original bytes as long as
    the process lives.
    """
    for name in names:
        os.environ.pop(name, None)
    system.wipe_variables(names)


def holders(values: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield the pid and the first words of the command line of each other process whose environment
    contains one of the values. Processes whose environment this process may not read are left out.
    """
    wanted = [os.fsencode(value) for value in values if value]
    for pid in system.pids():
        if pid == os.getpid():
            continue
        try:
            environ = system.variables(pid)
            command = system.command(pid).split(b"\0")
        except OSError:
            continue
        if any(value in environ for value in wanted):
            yield pid, " ".join(map(os.fsdecode, command[:_WORDS]))
