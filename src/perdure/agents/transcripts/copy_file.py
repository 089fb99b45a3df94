"""Updates perdure's copy of one file of an agent's conversation. The agent's file is called the
source here. A copy only grows.

Called by `Copies` for the transcript and for each file beside it. A `KnownCopy` stores facts about
the source and its copy, which make the next update cheap. Earlier bytes of the source are only
hashed, only new content is redacted and written, and an unchanged source is not read at all.

The facts are a cache, stored beside the copies. If they do not match or cannot be read, source and
copy are compared completely. If the source no longer begins with its copy, the caller decides:
either the copy is moved aside under a number and a new one begins, or CopyDiverged is raised.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import asdict

from perdure.host.redaction import Redactor
from perdure.host.system.files import open_file
from perdure.patterns import late_pattern

CHUNK = 1 << 20
KNOWN = "known.json"
SETTLED_NS = 2_000_000_000
"""Minimum age at which a file's times are reliable, in nanoseconds. A file that was written more
recently may be written again without a visible change of its times."""

STARRED = late_pattern(rb"\*{4,}")
"""Pattern of the asterisks with which `Redactor` replaces a secret. In base64, only the letters
that encode nothing but the secret are replaced."""

Identity = tuple[int, int, int, int]
"""Inode, size (bytes), time of the last write and time of the last change (both in ns) of a file.
If all four are the same as before, the file was not changed."""


class KnownCopy(Struct, frozen=True):
    """Facts about a copy of `size` bytes and about its source. `copy` is the identity of the copy's
    file at the time when the facts were recorded."""

    size: int
    raw: str
    """SHA-256 of the source's first `size` bytes; empty if the facts were computed from the copy
    alone."""
    kept: str
    """SHA-256 of the copy's content. It differs from `raw` if the copy has redacted secrets."""
    copy: Identity
    source: Identity | None = None
    """Identity of the source's file when the facts were recorded. None if the source had been
    written so recently that its times were not reliable (SETTLED_NS)."""


class CopyDiverged(Exception):
    """Raised if the source no longer begins with the content of the copy. The copy was not
    changed."""


def append_new(
    source: Path,
    copy: Path,
    known: KnownCopy | None,
    redactor: Redactor,
    *,
    aside: str = "",
    lines: bool = False,
    replace: bool = True,
) -> KnownCopy | None:
    """Append new content of the source to the copy. Return the facts about the copy; None if there
    is nothing to copy. Raise OSError if a file cannot be read or written.

    - `lines`: copy complete lines only. If the source is a symbolic link, follow the link; without
      `lines`, a link is an error.
    - `replace`: if the source no longer begins with the copy, move the copy aside (with `aside` in
      its new name) and begin a new one. Without `replace`, raise CopyDiverged.
    """
    with open_file(source, follow=lines) as file:
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
    if found is not None:
        return _settled(found, seen)
    return None


def continues(source: Path, copy: Path, known: KnownCopy | None, redactor: Redactor) -> bool:
    """Return whether the source begins with the content of the copy; True if there is no copy. A
    secret in the source counts as equal to the asterisks that replace it in the copy. Raise OSError
    if a file cannot be read."""
    with open_file(source, follow=True) as file:
        seen = _identity(os.fstat(file.fileno()))
        if known is not None and known.copy == identity(copy) and known.source == seen:
            return True
        return _continues(file, copy, known, redactor)


def _continues(file: BinaryIO, copy: Path, known: KnownCopy | None, redactor: Redactor) -> bool:
    """Do the work of `continues` for a source that is already open. `file` is positioned at its
    start."""
    # Compare with the recorded hash of the source first, because the copy itself may be damaged.
    if known is not None and known.raw:
        digest = hashlib.sha256()
        if _feed(digest, file, known.size) and digest.hexdigest() == known.raw:
            return True
        file.seek(0)
    if not copy.is_file() or copy.is_symlink():
        return True
    old = copy.read_bytes()
    raw = file.read()
    return len(raw) >= len(old) and same_redacted_text(
        old, redactor.bytes(raw)[: len(old)], redactor
    )


def same_redacted_text(old: bytes, new: bytes, redactor: Redactor) -> bool:
    """Return whether two redacted texts of the same length are equal.

    The environment may have other secrets now than when the copy was made. So asterisks in the copy
    (`old`) match any text. Text of the copy that is a secret now is redacted before the comparison.
    """
    if old == new:
        return True
    masked, other = bytearray(redactor.bytes(old)), bytearray(new)
    for span in STARRED.finditer(old):
        stars = b"*" * (span.end() - span.start())
        masked[span.start() : span.end()] = stars
        other[span.start() : span.end()] = stars
    return masked == other


def load_known(copy: Path, known: KnownCopy | None, *, lines: bool = False) -> KnownCopy | None:
    """Return the facts about a copy. They are computed from the copy if `known` is outdated. None
    if there is no copy, or (with `lines`) if the copy has no complete line."""
    now = identity(copy)
    if now is None:
        return None
    if known is not None and known.copy == now:
        return known
    content = copy.read_bytes()
    content = content[: content.rfind(b"\n") + 1] if lines else content
    digest = hashlib.sha256(content).hexdigest()
    if content or not lines:
        return KnownCopy(len(content), "", digest, now)
    return None


def read_known(directory: Path) -> dict[str, KnownCopy]:
    """Return the stored facts about the copies, by name. Empty if the file cannot be read; the
    copies themselves are then read again."""
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
    """Store the facts about the copies in a file beside the copies. Raise OSError if the file
    cannot be written."""
    staged = directory / f"{KNOWN}.new"
    with open(staged, "w", encoding="utf-8", opener=private) as file:
        json.dump({name: asdict(entry) for name, entry in known.items()}, file)
    staged.replace(directory / KNOWN)


def prefix(path: Path, size: int) -> str | None:
    """Return the SHA-256 of a file's first `size` bytes. None if the file is shorter or cannot be
    read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if _feed(digest, file, size):
                return digest.hexdigest()
            return None
    except OSError:
        return None


def move_aside(path: Path, suffix: str = "") -> Path:
    """Rename a file: append the suffix and the next free number to its name. Return its new
    path."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}{suffix}.{number}")):
        number += 1
    return path.rename(aside)


def versions(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield the file itself, then its versions that were moved aside, newest first."""
    numbered = []
    for each in path.parent.glob(f"{_literal(path.name + suffix)}.*"):
        if each.suffix[1:].isdecimal():
            numbered.append(each)
    newest_first = sorted(numbered, key=lambda each: -int(each.suffix[1:]))
    yield from filter(Path.is_file, (path, *newest_first))


def identity(path: Path) -> Identity | None:
    """Return the identity of a file as it is now. None if there is no regular file at this path."""
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return _identity(found)
        return None
    return None


def private(path: str, flags: int) -> int:
    """Open a file. If the file is created, only its owner can read and write it. Passed to `open`
    as its `opener`."""
    return os.open(path, flags, 0o600)


def private_directories(path: Path) -> None:
    """Create the missing directories of the path, each with mode 0700. `mkdir(parents=True)` would
    apply its mode only to the last directory."""
    for missing in reversed([each for each in (path, *path.parents) if not each.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _append(
    file: BinaryIO, copy: Path, known: KnownCopy, redactor: Redactor, lines: bool
) -> KnownCopy | None:
    """Append to the copy the content that follows the known part of the source. Return the new
    facts.

    Return None if the known facts cannot be used. This is the case if the source or the end of the
    copy has changed. It is also the case if a text that extends across the end of the copy counts
    as a secret now, but did not when the copy was made.
    """
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
    if lines:
        new = content[back : content.rfind(b"\n") + 1]
    else:
        new = content[back:]
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
    """Update the copy by reading source and copy completely, and return the new facts. Used for the
    first copy of a source, and if the stored facts do not match. None if there is nothing to copy.
    """
    raw = file.read()
    content = redactor.bytes(raw)
    content = content[: content.rfind(b"\n") + 1] if lines else content
    if copy.is_file() and not copy.is_symlink():
        old = copy.read_bytes()
    else:
        old = b""
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
    """Flush a directory to disk, so that new names in it survive a crash."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _feed(digest: hashlib._Hash, file: BinaryIO, size: int) -> bool:
    while size and (chunk := file.read(min(CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return not size


def _identity(state: os.stat_result) -> Identity:
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
