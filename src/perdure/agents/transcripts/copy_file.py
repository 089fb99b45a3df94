"""One file of an agent's conversation and perdure's copy of it, which only ever grows.

Called by `Copies` for the transcript and for each file beside it. What is known of a pair
(`KnownCopy`) makes the next look cheap: the source's earlier bytes are hashed and not read into
memory, only what is new is redacted and written, and a source that was not touched is not read at
all. A `KnownCopy` is a shortcut and never the truth, kept beside the copies: where it does not fit,
or cannot be read, both files are compared whole. A copy that its source no longer begins with is
moved aside under a number, and a new one begins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from perdure.host.redaction import Redactor
from perdure.lateclass import dataclass

CHUNK = 1 << 20
KNOWN = "known.json"
SETTLED_NS = 2_000_000_000
"""A file that was written less than so long ago may be written again without a change of its
times."""

STARRED = re.compile(rb"\*{4,}")
"""What `Redactor` leaves of a secret, or of the part of one that base64 shows."""

Identity = tuple[int, int, int, int]
"""Inode, size, last write and last change of a file (ns): the same as long as nobody touched it."""


@dataclass(frozen=True, slots=True)
class KnownCopy:
    """What is known of a copy. `copy` and `source` are the files as they were then."""

    size: int
    raw: str
    """SHA-256 of the source's first `size` bytes."""
    kept: str
    """SHA-256 of the copy, which has no secrets in it."""
    copy: Identity
    source: Identity | None = None
    """None where the source had only just been written."""


class CopyDiverged(Exception):
    """The source no longer begins with what the copy holds; the copy was left as it is."""


def grow(
    source: Path,
    copy: Path,
    known: KnownCopy | None,
    redactor: Redactor,
    *,
    aside: str = "",
    lines: bool = False,
    replace: bool = True,
) -> KnownCopy | None:
    """Append to the copy what is new in its source. Return None where there is nothing to keep.

    `lines`: whole lines only, and the source may be a link. `replace`: a copy that the source no
    longer begins with is moved aside (`aside` goes into its new name) and a new one begins.
    Raises Diverged instead where `replace` is false, and OSError.
    """
    with _opened(source, follow=lines) as file:
        seen = _identity(os.fstat(file.fileno()))
        if known is not None and known.copy == identity(copy):
            if known.source == seen:
                return known
            if (grown := _append(file, copy, known, redactor, lines)) is not None:
                return _settled(grown, seen)
            file.seek(0)
        if not replace and not _continues(file, copy, known, redactor):
            raise CopyDiverged
        file.seek(0)
        found = _compare(file, copy, redactor, lines, aside)
    return _settled(found, seen) if found is not None else None


def continues(source: Path, copy: Path, known: KnownCopy | None, redactor: Redactor) -> bool:
    """Return whether the source begins with what the copy holds, secrets aside. Raises OSError."""
    with _opened(source, follow=True) as file:
        seen = _identity(os.fstat(file.fileno()))
        if known is not None and known.copy == identity(copy) and known.source == seen:
            return True
        return _continues(file, copy, known, redactor)


def _continues(file: BinaryIO, copy: Path, known: KnownCopy | None, redactor: Redactor) -> bool:
    """The same for an open source, which is read from its beginning."""
    # The copy may have been damaged, and the source not: what is noted of the source decides.
    if known is not None and known.raw:
        digest = hashlib.sha256()
        if _feed(digest, file, known.size) and digest.hexdigest() == known.raw:
            return True
        file.seek(0)
    if not copy.is_file() or copy.is_symlink():
        return True
    old = copy.read_bytes()
    raw = file.read()
    return len(raw) >= len(old) and _alike(old, redactor.bytes(raw)[: len(old)], redactor)


def _alike(old: bytes, new: bytes, redactor: Redactor) -> bool:
    """Return whether two redacted texts of one length are the same.

    The environment may have other secrets than it had when the copy was made: what is starred in
    the copy may be anything now, and what is a secret now may stand in the copy.
    """
    if old == new:
        return True
    masked, other = bytearray(redactor.bytes(old)), bytearray(new)
    for span in STARRED.finditer(old):
        stars = b"*" * (span.end() - span.start())
        masked[span.start() : span.end()] = stars
        other[span.start() : span.end()] = stars
    return masked == other


def known_of(copy: Path, known: KnownCopy | None, *, lines: bool = False) -> KnownCopy | None:
    """What a copy holds, by what is known of it or else by reading it. None if there is none, or
    nothing in it."""
    now = identity(copy)
    if now is None:
        return None
    if known is not None and known.copy == now:
        return known
    content = copy.read_bytes()
    content = content[: content.rfind(b"\n") + 1] if lines else content
    digest = hashlib.sha256(content).hexdigest()
    return KnownCopy(len(content), "", digest, now) if content or not lines else None


def read_known(directory: Path) -> dict[str, KnownCopy]:
    """What is known of the copies; nothing where that cannot be read: then they are read
    themselves."""
    try:
        found = json.loads((directory / KNOWN).read_bytes())
        return {name: _from_json(entry) for name, entry in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _from_json(entry: dict[str, object]) -> KnownCopy:
    copy, source = entry.pop("copy"), entry.pop("source")
    return KnownCopy(
        copy=tuple(copy),  # type: ignore[arg-type]
        source=tuple(source) if source else None,  # type: ignore[arg-type]
        **entry,  # type: ignore[arg-type]
    )


def write_known(directory: Path, known: dict[str, KnownCopy]) -> None:
    """Keeps it beside the copies. Raises OSError."""
    staged = directory / f"{KNOWN}.new"
    with open(staged, "w", encoding="utf-8", opener=private) as file:
        json.dump({name: asdict(entry) for name, entry in known.items()}, file)
    staged.replace(directory / KNOWN)


def prefix(path: Path, size: int) -> str | None:
    """SHA-256 of a file's first `size` bytes; None if it is shorter, or cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            return digest.hexdigest() if _feed(digest, file, size) else None
    except OSError:
        return None


def move_aside(path: Path, suffix: str = "") -> Path:
    """Gives a file the next free number. Returns where it is."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}{suffix}.{number}")):
        number += 1
    return path.rename(aside)


def versions(path: Path, suffix: str = "") -> Iterator[Path]:
    """The file and those of its name that were moved aside, the newest first."""
    numbered = [
        each
        for each in path.parent.glob(f"{_literal(path.name + suffix)}.*")
        if each.suffix[1:].isdecimal()
    ]
    yield from (
        each
        for each in (path, *sorted(numbered, key=lambda each: -int(each.suffix[1:])))
        if each.is_file()
    )


def identity(path: Path) -> Identity | None:
    """The file as it is now; None if there is no regular file."""
    with suppress(OSError):
        found = path.lstat()
        return _identity(found) if stat.S_ISREG(found.st_mode) else None
    return None


def private(path: str, flags: int) -> int:
    """An `opener` for files that only their owner can read."""
    return os.open(path, flags, 0o600)


def private_directories(path: Path) -> None:
    """Makes what is missing of the path. `mkdir` alone gives its mode to the last directory
    only."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _append(
    file: BinaryIO, copy: Path, known: KnownCopy, redactor: Redactor, lines: bool
) -> KnownCopy | None:
    """Copies what came after the known part; None if the source does not begin with that, or a
    secret may stand across its end."""
    digest = hashlib.sha256()
    if not _feed(digest, file, known.size) or digest.hexdigest() != known.raw:
        return None
    back = min(known.size, redactor.reach)
    file.seek(known.size - back)
    raw = file.read()
    content = redactor.bytes(raw)
    with copy.open("rb") as old:
        old.seek(known.size - back)
        if old.read() != content[:back]:
            return None
    new = content[back : content.rfind(b"\n") + 1] if lines else content[back:]
    digest.update(raw[back : back + len(new)])
    if new:
        _write(copy, new)
    return _known(
        copy,
        known.size + len(new),
        digest.hexdigest(),
        alike=known.raw == known.kept and new == raw[back : back + len(new)],
    )


def _compare(
    file: BinaryIO, copy: Path, redactor: Redactor, lines: bool, aside: str
) -> KnownCopy | None:
    """Both files whole: the way for a first copy, and wherever there is doubt."""
    raw = file.read()
    content = redactor.bytes(raw)
    content = content[: content.rfind(b"\n") + 1] if lines else content
    old = copy.read_bytes() if copy.is_file() and not copy.is_symlink() else b""
    if os.path.lexists(copy) and (
        copy.is_symlink() or not copy.is_file() or not content.startswith(old)
    ):
        move_aside(copy, aside)
        old = b""
    if len(content) > len(old) or (not lines and not copy.exists()):
        _write(copy, content[len(old) :])
    if not copy.exists():
        return None
    raw = raw[: len(content)]
    return _known(copy, len(content), hashlib.sha256(raw).hexdigest(), alike=raw == content)


def _known(copy: Path, size: int, raw: str, *, alike: bool) -> KnownCopy:
    now = identity(copy)
    assert now is not None
    return KnownCopy(size, raw, raw if alike else prefix(copy, size) or "", now)


def _settled(known: KnownCopy, seen: Identity) -> KnownCopy:
    recent = max(seen[2], seen[3]) > time.time_ns() - SETTLED_NS
    return KnownCopy(known.size, known.raw, known.kept, known.copy, None if recent else seen)


def _write(copy: Path, content: bytes) -> None:
    new = not copy.exists()
    if new:
        private_directories(copy.parent)
    with open(copy, "ab", opener=private) as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    if new:
        sync(copy.parent)


def sync(directory: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _opened(path: Path, *, follow: bool) -> BinaryIO:
    """A regular file of the agent's, opened to be read: a pipe in its place would wait for ever."""
    fd = os.open(
        path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    )
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(f"{path} is no file")
    return os.fdopen(fd, "rb")


def _feed(digest: hashlib._Hash, file: BinaryIO, size: int) -> bool:
    while size and (chunk := file.read(min(CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return not size


def _identity(state: os.stat_result) -> Identity:
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
