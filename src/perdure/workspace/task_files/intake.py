"""Reads the files that a person gives (`--file PATH[=DEST]` and everything below `--context DIR`),
and stores them. All files are checked before the first one is stored.

`service` calls `take` when a run is submitted or updated. A path that the person named may be a
link. Below DIR, links, special files and `.git` are left out, and reported.

`Contents` stores bytes by their SHA-256 below `{state}/given`, readable only by the owner: every
version of a task file that a person gave, and every merge result.

A content is stored completely or not at all, and is never changed. Other modules refer to it by
digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from msgspec import Struct

from perdure.errors import NotFound, StoreError, UsageError
from perdure.host.system.files import walk
from perdure.model import Given, OnEdit, TaskFile


class Contents:
    """The stored contents of task files below one state directory."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "given"

    def path(self, sha256: str) -> Path:
        """Return the path at which the content is stored, even if it is not stored yet."""
        return self.directory / sha256[:2] / sha256

    def put(self, content: bytes) -> str:
        """Store the content durably and return its digest. Raises StoreError."""
        digest = hashlib.sha256(content).hexdigest()
        place = self.path(digest)
        try:
            if self.get(digest) is None:
                write(place, content)
        except OSError as error:
            raise StoreError(
                f"a task file cannot be kept in {place.parent}: {error.strerror}",
                "free some space, or check its permissions",
            ) from error
        return digest

    def get(self, sha256: str) -> bytes | None:
        """Return the content; None where it is missing or damaged."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        try:
            content = self.path(sha256).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        return None


def write(place: Path, content: bytes) -> None:
    """Write a file of perdure's own atomically, readable only by its owner. Raises OSError."""
    private_directories(place.parent)
    fresh = place.parent / f".{secrets.token_hex(8)}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        fresh.replace(place)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(place.parent)


def private_directories(directory: Path) -> None:
    """Make the missing directories of a path, durably. Raises OSError."""
    absent = [each for each in (directory, *directory.parents) if not each.exists()]
    for missing in reversed(absent):
        missing.mkdir(mode=0o700, exist_ok=True)
        sync(missing.parent)


def sync(directory: Path) -> None:
    """Make the changes in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


LARGEST = 16 << 20
MOST = 10_000
TOGETHER = 256 << 20
SOME = 5
"""Maximum number of left-out files that a message to the person names."""
LONGEST_NAME = 1000
"""Maximum length of a task file's name, in bytes. It leaves room for the path of the file's backup.
"""


class FileRequest(Struct, frozen=True, kw_only=True):
    """The files that a person gives. Each of `files` is `PATH` or `PATH=DEST`. `context` is a
    directory; empty if there is none."""

    cwd: Path
    files: tuple[str, ...] = ()
    context: str = ""
    on_edit: OnEdit = OnEdit.MERGE
    whole: bool = False
    """Whether these files replace all earlier task files of the run. Files from `context` always
    replace them."""
    tell: Callable[[str], None] = lambda text: None
    """Function that is called with a sentence for the person about files that were left out."""


class _Source(Struct, frozen=True):
    path: Path
    name: str
    flags: int
    """Flags for opening the file. For a file below DIR, they refuse a link."""


def take(contents: Contents, asked: FileRequest) -> Given:
    """Store the files and return a record of them. Raises UsageError for files that cannot be
    accepted, NotFound for missing files."""
    left_out: list[str] = []
    sources = {source.name: source for source in _below(asked, left_out)}
    named: set[str] = set()
    for text in asked.files:
        source = _named(asked.cwd, text)
        if source.name in named:
            raise UsageError(
                f"{source.name!r} is given twice",
                "give each a DEST of its own: --file PATH=DEST",
            )
        named.add(source.name)
        sources[source.name] = source
    if len(sources) > MOST:
        raise _too_many()
    for name in sources:
        for above in map(str, PurePosixPath(name).parents):
            if above in sources:
                raise UsageError(
                    f"{above!r} cannot be a file and a directory: {name!r} is inside it"
                )
    together = sum(map(_size, sources.values()))
    if together > TOGETHER:
        raise UsageError(
            f"the files have {together:,} bytes together, and at most {TOGETHER:,} can be given",
            "give fewer of them",
        )
    files = tuple(_kept(contents, sources[name]) for name in sorted(sources))
    if left_out:
        if len(left_out) > SOME:
            more = f" and {len(left_out) - SOME} more"
        else:
            more = ""
        asked.tell(f"left out of {asked.context}: {', '.join(left_out[:SOME])}{more}")
    return Given(files, whole=asked.whole or bool(asked.context), on_edit=asked.on_edit)


def check_name(name: str) -> str:
    """Return the name if a task file may have it in the workdir. Raises UsageError for a name that
    leads outside, or is reserved by git or perdure."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the file name {os.fsencode(name)!r} is not UTF-8",
            "give it another one: --file PATH=DEST",
        ) from None
    parts = name.split("/")
    if "\0" in name or {"", ".", ".."}.intersection(parts):
        raise UsageError(
            f"{name!r} is not a path in the workdir",
            "give a relative path without .., as in --file PATH=docs/notes.md",
        )
    if any(part.lower() == ".git" or part.startswith(".perdure-") for part in parts):
        raise UsageError(
            f"{name!r} cannot be given: .git belongs to git, and .perdure-... to perdure"
        )
    if len(raw) > LONGEST_NAME or max(map(len, raw.split(b"/"))) > 255:
        raise UsageError(
            f"the file name {name[:60]!r}... is too long",
            f"at most 255 bytes for each part of the path, and {LONGEST_NAME} in total",
        )
    return name


def _named(cwd: Path, text: str) -> _Source:
    path, dest = text, ""
    if "=" in text and not os.path.lexists(cwd / Path(text).expanduser()):
        path, _, dest = text.rpartition("=")
    place = cwd / Path(path).expanduser()
    if not path or "\0" in path:
        raise UsageError(f"--file needs PATH or PATH=DEST, not {text!r}")
    name = PurePosixPath(f"{dest}{place.name}" if dest.endswith("/") else dest or place.name)
    return _Source(place, check_name(str(name)), os.O_RDONLY)


def _below(asked: FileRequest, left_out: list[str]) -> Iterator[_Source]:
    """Yield the files below the context directory. Adds skipped names to `left_out`."""
    if not asked.context:
        return
    top = asked.cwd / Path(asked.context).expanduser()
    if not top.is_dir():
        raise NotFound(f"there is no directory {asked.context!r} to take files from")
    count = 0
    for folder, folders, names in walk(top, onerror=_unreadable):
        here = Path(folder)
        for name in sorted(folders):
            if name == ".git" or (here / name).is_symlink():
                folders.remove(name)
                kind = "git" if name == ".git" else "a link"
                left_out.append(f"{(here / name).relative_to(top)} ({kind})")
        folders.sort()
        for name in sorted(names):
            found = (here / name).lstat()
            if not stat.S_ISREG(found.st_mode) or name == ".git":
                if stat.S_ISLNK(found.st_mode):
                    why = "a link"
                elif name == ".git":
                    why = "git"
                else:
                    why = "not a regular file"
                left_out.append(f"{(here / name).relative_to(top)} ({why})")
                continue
            count += 1
            if count > MOST:
                raise _too_many()
            yield _Source(
                here / name,
                check_name(str((here / name).relative_to(top))),
                os.O_RDONLY | os.O_NOFOLLOW,
            )


def _unreadable(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read: {error.strerror}")


def _too_many() -> UsageError:
    return UsageError(f"at most {MOST:,} files can be given", "give a smaller directory")


def _size(source: _Source) -> int:
    try:
        if source.flags & os.O_NOFOLLOW:
            found = source.path.lstat()
        else:
            found = source.path.stat()
    except FileNotFoundError:
        raise NotFound(f"there is no file {str(source.path)!r}") from None
    except OSError as error:
        raise UsageError(f"{str(source.path)!r} cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(
            f"{str(source.path)!r} is a directory", f"perdure ... --context {source.path}"
        )
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{str(source.path)!r} is not a regular file")
    if found.st_size > LARGEST:
        raise _too_large(source)
    return found.st_size


def _kept(contents: Contents, source: _Source) -> TaskFile:
    try:
        fd = os.open(source.path, source.flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{str(source.path)!r} cannot be read: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            content = file.read(LARGEST + 1)
        else:
            content = b""
    if len(content) > LARGEST:
        raise _too_large(source)
    return TaskFile(source.name, contents.put(content), len(content), bool(found.st_mode & 0o100))


def _too_large(source: _Source) -> UsageError:
    return UsageError(
        f"{str(source.path)!r} has more than {LARGEST:,} bytes",
        "put a file of this size into the repository",
    )
