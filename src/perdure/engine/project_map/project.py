"""Reads the files of a directory and their outlines. Only files whose names the caller gives (from
`Workspaces.sources`) are read. Used by `engine.attempt.project_map`.

Each file is opened directory by directory, starting at the top, without following links. So no file
outside the directory is ever read. A file that is larger than `LARGEST` or binary appears in the
map only by its name. Outlines are cached in one of perdure's own files, with the size and times of
each outlined file. The next call then parses only the files that have changed.

`ParserProcess` parses untrusted files in a child process. A tree-sitter parser has a bounded stack,
but no bound in memory or time: 100 KB of `a<a<a<...` as Java took more than 23 GB (tree-sitter
0.26.1 with tree-sitter-java 0.23.5). The child therefore has its own limits, and may die while
parsing. `Asker` is the interface to the child, which the caller starts (`process.ChildProcess`).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from perdure.engine.project_map.languages import language_of, outline_of
from perdure.engine.project_map.outline import NO_OUTLINE, Outline, OutlineFile, Project
from perdure.model.codec import resolved

ANSWER = f"{__name__}:answer"


class Asker(Protocol):
    """Interface to a child process that answers questions. `process.ChildProcess(ANSWER)`
    implements it."""

    @property
    def over(self) -> bool: ...

    def ask(self, question: bytes) -> bytes | None: ...


class ParserStopped(Exception):
    """Raised if the child process died too often, so that it is not started again."""


class ParserProcess:
    """Parses files in a child process. It is called like `languages.outline_of`."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def __call__(self, language: str, content: bytes) -> Outline | None:
        """Return the outline of a file, or None, as `outline_of` does. If the child process dies
        while it parses this file, return an empty outline. Raises ParserStopped."""
        if self.asker.over:
            raise ParserStopped
        said = self.asker.ask(msgspec.msgpack.encode((language, content)))
        if said is None:
            return NO_OUTLINE
        return msgspec.msgpack.decode(said, type=resolved(Outline | None))


def answer(question: bytes) -> bytes:
    """Decode the question, which has a language and the content of a file, and return the file's
    outline, encoded. Runs in the child process."""
    language, content = msgspec.msgpack.decode(question, type=resolved(tuple[str, bytes]))
    return msgspec.msgpack.encode(outline_of(language, content))


LARGEST = 512 << 10
"""Maximum size of a parsed file, in bytes."""
MOST_FILES = 20_000
MOST_BYTES = 64 << 20
"""Maximum total size of the files parsed for one map, in bytes. All further files appear in the map
only by name."""
PATIENCE_S = 20.0
"""Time limit for parsing the files of one map, in seconds. The remaining files appear in the map
only by name; the next call parses them."""
FORM = 1
"""Version of the cache format; a cache of another version is ignored."""


Parse = Callable[[str, bytes], Outline | None]


class KnownFile(msgspec.Struct, frozen=True, array_like=True):
    """A cached outline. `stamp` has the size and times of the file from which it was made."""

    stamp: tuple[int, int, int]
    outline: Outline


class MapCache(msgspec.Struct, array_like=True):
    """The content of the cache file: the outlines of the files of one directory."""

    form: int
    files: dict[str, KnownFile]


def read(directory: Path, names: Iterable[str], parse: Parse, cache: Path | None = None) -> Project:
    """Read the files of a directory, and return them as a project. `parse`: a `ParserProcess`, or
    `languages.outline_of` for trusted files.

    A name is left out if the file does not exist or is outside the directory. Raises OSError if the
    directory itself cannot be opened.
    """
    wanted = sorted(set(names))
    known = _cached(cache) if cache is not None else {}
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        reader = _Reader(top, known, parse)
        files = {}
        for name in wanted[:MOST_FILES]:
            if (file := reader.file(name)) is not None:
                files[name] = file
    finally:
        os.close(top)
    if cache is not None and (reader.parsed or known.keys() != reader.outlines.keys()):
        _keep(cache, reader.outlines)
    return Project(
        files=files,
        beyond=max(0, len(wanted) - MOST_FILES),
        missing=frozenset(reader.missing),
        unparsed=reader.unparsed,
    )


class _Reader:
    """Reads the files of one directory for one map."""

    def __init__(self, top: int, known: Mapping[str, KnownFile], parse: Parse) -> None:
        self.top, self.known, self.parse = top, known, parse
        self.outlines: dict[str, KnownFile] = {}
        self.missing: set[str] = set()
        self.parsed = self.bytes = self.unparsed = 0
        self.deadline = time.monotonic() + PATIENCE_S

    def file(self, name: str) -> OutlineFile | None:
        """Return the file with its outline; None if it does not exist any more or is not a regular
        file."""
        try:
            fd = _opened(self.top, name)
        except (OSError, ValueError):
            return None
        try:
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode):
                return None
            return OutlineFile(name, self._outline(fd, name, seen), seen.st_mtime_ns)
        finally:
            os.close(fd)

    def _outline(self, fd: int, name: str, seen: os.stat_result) -> Outline | None:
        language = language_of(name)
        if not language or seen.st_size > LARGEST:
            return None
        stamp = (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        kept = self.known.get(name)
        if kept is None or kept.stamp != stamp:
            if self.bytes > MOST_BYTES or time.monotonic() > self.deadline:
                return None
            content = _content(fd)
            if b"\0" in content:
                return None
            try:
                found = self.parse(language, content)
            except ParserStopped:
                self.unparsed += 1
                return None
            if found is None:
                self.missing.add(language)
                return None
            kept = KnownFile(stamp, found)
            self.parsed, self.bytes = self.parsed + 1, self.bytes + len(content)
        self.outlines[name] = kept
        return kept.outline


def _opened(top: int, name: str) -> int:
    """Open the file without following any link, and return its descriptor. Raises OSError,
    ValueError."""
    *directories, last = name.split("/")
    if any(part in ("", ".", "..") for part in (*directories, last)):
        raise ValueError(name)
    at = top
    try:
        for part in directories:
            below = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at
            )
            if at != top:
                os.close(at)
            at = below
        # Without O_NONBLOCK, opening a pipe would block until a writer opens it.
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        if at != top:
            os.close(at)


def _content(fd: int) -> bytes:
    chunks, left = [], LARGEST
    while left and (chunk := os.read(fd, left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _cached(cache: Path) -> dict[str, KnownFile]:
    try:
        found = msgspec.msgpack.decode(cache.read_bytes(), type=resolved(MapCache))
    except (OSError, msgspec.MsgspecError):
        return {}
    if found.form == FORM:
        return found.files
    return {}


def _keep(cache: Path, outlines: dict[str, KnownFile]) -> None:
    """Replace the cache file atomically. It is not synced and errors are ignored, because it can be
    created again at any time."""
    beside = cache.with_name(f"{cache.name}.{os.getpid()}")
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        named = {}
        for name, known in outlines.items():
            if name.isprintable():
                named[name] = known
        beside.write_bytes(msgspec.msgpack.encode(MapCache(FORM, named)))
        beside.replace(cache)
