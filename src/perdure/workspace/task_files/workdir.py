"""Reads, merges and replaces task files in a workdir, safely against anything that an agent may
have left there. `placement` uses it.

Directories are opened one by one and no link is followed. So no name leads outside of the workdir.
Anything that is not a regular file or directory raises `UnexpectedFile` and stays as it is. A file
is written beside its final path, made durable, and renamed in one step, only if the workdir still
has the expected content. A file with other content is never overwritten.

`merge_texts` makes a three-way merge of one file, with `git merge-file` on copies in a temporary
directory. No repository is involved. Where both sides changed the same lines, the result has all
three versions between labeled conflict markers (`--zdiff3`, git 2.35 and newer).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from perdure.errors import GitFailed
from perdure.host.git import Git
from perdure.rules.placement import ODD, mark_of

LARGEST = 256 << 20
"""Maximum size of a file that is read, in bytes. A larger file raises `UnexpectedFile`."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class UnexpectedFile(Exception):
    """Raised if there is anything at a path except a regular file of permitted size, or if the path
    leads through anything but real directories."""


class TaskFileWorkdir:
    """The task files below one directory. The directory's path contains no link."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._written: set[tuple[str, ...]] = set()

    def file_mark(self, name: str) -> str:
        """Return the file's mark: the digest of its content, with `+x` if the file is executable
        (see `rules.placement`). Empty if there is no file. Raises OSError for a file that cannot be
        read."""
        try:
            with self.opened(name) as file:
                if file is not None:
                    return _mark(file)
                return ""
        except UnexpectedFile:
            return ODD

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO | None]:
        """Yield the file, open for reading; None if there is none. Raises UnexpectedFile."""
        with contextlib.ExitStack() as stack:
            *above, last = _parts(name)
            try:
                file = _open(stack.enter_context(self._directory(above, make=False)), last)
            except FileNotFoundError:
                file = None
            yield stack.enter_context(file) if file is not None else None

    def put(
        self,
        name: str,
        content: bytes,
        before: str,
        after: str,
        token: str,
        rescue: Callable[[BinaryIO], None],
    ) -> bool:
        """Replace the file, if its mark (see `file_mark`) is `before`. Return whether the file now
        has the mark `after`; False means that nothing was written.

        `token` identifies this write, so that the remains of an interrupted write are recognized
        and removed. `rescue` is called with the replaced file if another process wrote to it during
        the replacement. Raises OSError.
        """
        try:
            *above, last = _parts(name)
            with self._directory(above, make=True) as fd, contextlib.ExitStack() as stack:
                fresh = f".perdure-{hashlib.sha256(f'{token}/{name}'.encode()).hexdigest()[:16]}"
                if not _clear(fd, fresh, content):
                    fresh = f".perdure-{secrets.token_hex(8)}"
                old = _open(fd, last)
                if old is not None:
                    there = _mark(stack.enter_context(old))
                else:
                    there = ""
                if there == after or there != before:
                    return there == after
                _fill(
                    fd,
                    fresh,
                    content,
                    after.endswith("+x"),
                    os.fstat(old.fileno()) if old is not None else None,
                )
                if not _exchange(fd, fresh, last, new=old is None):
                    return False
                if old is not None and _mark(old) != before:
                    rescue(old)
        except UnexpectedFile:
            return False
        self._written.add(tuple(above))
        return True

    def sync(self) -> None:
        """Make everything that was written durable."""
        for above in self._written:
            for length in range(len(above) + 1):
                with (
                    contextlib.suppress(UnexpectedFile, FileNotFoundError),
                    self._directory(above[:length], make=False) as fd,
                ):
                    os.fsync(fd)
        self._written.clear()

    @contextlib.contextmanager
    def _directory(self, parts: list[str] | tuple[str, ...], *, make: bool) -> Iterator[int]:
        """Yield a descriptor of a directory in the workdir. `make`: whether missing directories are
        made. Raises UnexpectedFile, FileNotFoundError."""
        fd = os.open(self._top, _DIRECTORY)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    raise
                except OSError as error:  # a link, a file, or a directory without permission
                    raise UnexpectedFile from error
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)


def _parts(name: str) -> list[str]:
    """Return the parts of a name. Raises UnexpectedFile for a name that leads outside or into git's
    directory. The name may come from a journal of another machine, which is not trusted."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" or "\0" in part for part in parts):
        raise UnexpectedFile
    return parts


def _open(fd: int, name: str) -> BinaryIO | None:
    """Open a regular file; return None if there is no file. Raises UnexpectedFile."""
    try:
        found = os.lstat(name, dir_fd=fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise UnexpectedFile
        file = os.fdopen(os.open(name, _FILE, dir_fd=fd), "rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnexpectedFile from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnexpectedFile
    return file


def _mark(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return mark_of(digest.hexdigest(), bool(os.fstat(file.fileno()).st_mode & 0o100))


def _clear(fd: int, fresh: str, content: bytes) -> bool:
    """Remove the temporary file that an earlier, interrupted try of the same write left. Return
    False if something else has its name."""
    try:
        file = _open(fd, fresh)
    except UnexpectedFile:
        return False
    if file is None:
        return True
    with file:
        if not content.startswith(file.read(len(content) + 1)):
            return False
    os.unlink(fresh, dir_fd=fd)
    return True


def _fill(
    fd: int, fresh: str, content: bytes, executable: bool, old: os.stat_result | None
) -> None:
    made = os.open(
        fresh,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
        0o777 if executable else 0o666,
        dir_fd=fd,
    )
    try:
        with os.fdopen(made, "wb") as file:
            file.write(content)
            if old is not None:
                os.fchmod(made, _rights(stat.S_IMODE(old.st_mode), executable))
            file.flush()
            os.fsync(made)
    except BaseException:
        os.unlink(fresh, dir_fd=fd)
        raise


def _rights(before: int, executable: bool) -> int:
    """Return the mode for a file that replaces another one with the mode `before`. Read and write
    permissions are kept. If the new file is executable, everybody who may read it may also execute
    it."""
    if not executable:
        return before & 0o666
    if before & 0o100:
        return before & 0o777
    return before & 0o666 | before >> 2 & 0o111 | 0o100


def _exchange(fd: int, fresh: str, last: str, *, new: bool) -> bool:
    """Rename a file to its final name, and return whether it was renamed. With `new`, do so only if
    nothing has that name yet."""
    try:
        return _renamed(fd, fresh, last, new=new)
    except OSError:
        os.unlink(fresh, dir_fd=fd)
        raise


def _renamed(fd: int, fresh: str, last: str, *, new: bool) -> bool:
    if new:
        try:
            os.link(fresh, last, src_dir_fd=fd, dst_dir_fd=fd)
        except FileExistsError:
            os.unlink(fresh, dir_fd=fd)
            return False
        except OSError:  # a file system without hard links
            pass
        else:
            os.unlink(fresh, dir_fd=fd)
            return True
    os.rename(fresh, last, src_dir_fd=fd, dst_dir_fd=fd)
    return True


LARGEST_MERGE = 4 << 20
"""Maximum size of a file to merge, in bytes. A larger file is reported as a conflict."""
MOST_CONFLICTS = 127
"""Highest number of conflicts that git's exit code can report."""


def merge_texts(
    own: bytes, base: bytes, given: bytes, labels: tuple[str, str, str], environ: Mapping[str, str]
) -> tuple[bytes, int] | None:
    """Return the merged bytes and the number of conflicts in them. None if one of the files is
    binary or too large, or if git fails."""
    sides = (own, base, given)
    if any(len(side) > LARGEST_MERGE or b"\0" in side for side in sides):
        return None
    with tempfile.TemporaryDirectory(prefix="perdure-merge-") as directory:
        place = Path(directory).resolve()
        names = ("own", "base", "given")
        for name, side in zip(names, sides, strict=True):
            (place / name).write_bytes(side)
        told = []
        for label in labels:
            told += ["-L", label]
        git = Git(cwd=place, ceiling=place.parent, environ=environ)
        try:
            done = git.run(
                "merge-file",
                "-p",
                "-q",
                "--zdiff3",
                *told,
                "--",
                *names,
                good=range(MOST_CONFLICTS + 1),
            )
        except GitFailed:
            return None
    return done.stdout, done.code
