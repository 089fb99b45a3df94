"""Writes and removes a tree's files in a workdir without git, so that no setting of the repository
changes their content.

`restore` calls it with the differences between the tree that was just saved and the wanted tree.
Directories are opened one by one and links are never followed. So nothing that an agent put in the
way leads outside. A file to be removed is moved aside first. It is deleted only if its bytes are
those in the saved tree; otherwise it goes to the trash.

At every moment a path has the old file or the new one, with one exception. For an instant, a file
may exist only under a name `.perdure-*` in the same directory. After a kill the next restore saves
and removes such a file like any other.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from perdure.errors import WorkspaceError
from perdure.host.system.files import change_mode, path_in, umask
from perdure.workspace import trash
from perdure.workspace.identity import Places
from perdure.workspace.locks import make_private
from perdure.workspace.snapshot import disarm
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
from perdure.workspace.snapshot.trees import (
    Change,
    Rights,
    folded,
    given,
    ignores_case,
    kept,
    unescape,
)

_NOTHING = "000000"
_SUBMODULE = "160000"
_LINK = "120000"
_FILE = "100644"
_AT_ONCE = 32 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Placer:
    """Writes below one directory. `notes` names files that were moved to the trash, or could not be
    written."""

    def __init__(
        self, places: Places, repo: CheckpointRepository, rights: Rights, *, outside: bool = False
    ) -> None:
        """Prepare to write. `outside`: whether the checkpoint came from another machine, so that
        repositories in it have to be made harmless (see `disarm`)."""
        self._outside = outside
        self._places, self._shelf, self._rights, self._umask = places, repo, rights, umask()
        self._scratch = make_private(places.scratch)
        # Where the file system distinguishes case, `.GIT` is an ordinary name.
        self._folds = self._outside and ignores_case(repo.top)
        self._made: dict[str, None] = {}
        self.notes: list[str] = []

    def place(
        self, changes: Sequence[Change], empty: Sequence[str], no_longer: Sequence[str]
    ) -> None:
        """Make the changes in the workdir, then create the directories in `empty`. Remove the
        directories in `no_longer` if they are empty. Raises WorkspaceError."""
        with self._told():
            self._place(changes, empty, no_longer)

    def open_up(self, directories: Sequence[str]) -> None:
        """Give the owner full permissions for these directories, so that files in them can be
        written. `fit` sets the final modes. Raises WorkspaceError."""
        with self._told():
            for name in sorted(directories):
                self._set(name, lambda mode: stat.S_IMODE(mode) | 0o700)

    def fit(self, names: Iterable[str]) -> None:
        """Set the final modes of these names and of the directories that this object made. Raises
        WorkspaceError."""
        with self._told():
            for name in sorted({*names, *self._made}, reverse=True):
                self._set(name, partial(self._fitting, name))

    def _fitting(self, name: str, mode: int) -> int:
        wanted = given(mode, self._rights.of(name, mode), self._umask, mode) | (mode & 0o7000)
        if name in self._made or kept(wanted) != kept(mode):
            return wanted
        return stat.S_IMODE(mode)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error.filename, str | bytes):
                name = os.fsdecode(error.filename)
            else:
                name = ""
            raise WorkspaceError(
                f"{self._shelf.top} could not be restored completely: {name or 'a file'}: "
                f"{error.strerror}.",
                "Nothing is lost. Free some space or check its permissions, then try again: the "
                "restore continues where it stopped.",
            ) from error

    def _set(self, name: str, change: Callable[[int], int]) -> None:
        """Change the mode of the file or directory, if it exists. Links are not followed. `change`
        returns the new mode for the current one."""
        parts = name.rstrip("/").split("/")
        if not name or not self._checked(name.rstrip("/")):
            return

        def wanted(mode: int) -> int | None:
            if name.endswith("/"):
                fits = stat.S_ISDIR(mode)
            else:
                fits = stat.S_ISREG(mode)
            if fits and change(mode) != stat.S_IMODE(mode):
                return change(mode)
            return None

        try:
            with self._open(parts[:-1], make=False) as above:
                change_mode(parts[-1], above, wanted)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise

    def _place(
        self, changes: Sequence[Change], empty: Sequence[str], no_longer: Sequence[str]
    ) -> None:
        known = [change for change in changes if _SUBMODULE not in (change.old_mode, change.mode)]
        for change in known:
            if change.mode == _NOTHING and (parts := self._parts(change.name, change.old_mode)):
                self._remove(parts, change)
        wanted = [change for change in known if change.mode != _NOTHING]
        for change, content in self._contents(wanted):
            if change.mode == _LINK and not _is_target(content):
                name = unescape(change.name, link=True)
                self.notes.append(f"{name!r} was not restored: it is not a valid link.")
            elif parts := self._parts(change.name, change.mode):
                for place, what, inner in (
                    self._disarmed(parts, change, content)
                    if self._outside
                    else [(parts, change, content)]
                ):
                    self._write(place, what, inner)
        for name in sorted(no_longer, reverse=True):
            if parts := self._checked(name):
                self._leave_empty(parts)
        for name in empty:
            if parts := self._checked(name):
                with self._open(parts, make=True):
                    pass

    def _disarmed(
        self, parts: list[str], change: Change, content: bytes | Path
    ) -> Iterator[tuple[list[str], Change, bytes | Path]]:
        """Yield the changes to make instead of this change to a file from another machine. They
        make the file harmless; see `disarm`."""
        name = "/".join(parts)
        if self._folds or ".git" in parts:
            kind = disarm.kind(parts)
        else:
            kind = ""
        aside = [*parts[:-1], parts[-1] + disarm.ASIDE]
        if kind == "hook":
            self.notes.append(f"{name!r} was left out: it is a hook from another machine.")
        elif kind == "operation":
            self.notes.append(f"{name!r} was left out: {disarm.OPERATION}.")
        elif kind == "pointer":
            self.notes.append(
                f"{name!r} comes from another machine and points git to another directory, so it "
                f"is not used: it was saved as {aside[-1]!r}."
            )
            yield aside, change, content
        elif (
            kind == "config"
            and (safe := disarm.plain(self._shelf, content, change.mode == _LINK)) is not None
        ):
            self.notes.append(
                f"{name!r} comes from another machine and may name programs: it was saved as "
                f"{aside[-1]!r}, and a plain configuration is used."
            )
            yield aside, change, content
            yield parts, replace(change, mode=_FILE), safe
        else:
            yield parts, change, content

    def _parts(self, name: str, mode: str) -> list[str]:
        return self._checked(unescape(name, mode == _LINK))

    def _checked(self, name: str) -> list[str]:
        """Return the parts of a path. Empty if the path leads outside or into the workdir's own git
        directory: the names in a tree are not trusted."""
        parts = name.split("/")
        is_git = parts[0] == ".git" or (self._folds and folded(parts[0]) == ".git")
        if self._shelf.broken and is_git:
            return []
        if self._shelf.admin is not None and is_git:
            note = "Files below '.git' were not restored: that is the workdir's own git directory."
            self.notes += [] if note in self.notes else [note]
            return []
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            self.notes.append(
                f"{name!r} was not restored: it is not a valid name of a file in a workdir."
            )
            return []
        return parts

    @contextlib.contextmanager
    def _open(self, parts: Sequence[str], *, make: bool) -> Iterator[int]:
        """Yield a descriptor of a directory below the top. With `make`, missing directories are
        made, and anything in the way is moved to the trash. Raises FileNotFoundError or
        NotADirectoryError."""
        fd = os.open(self._shelf.top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for number, part in enumerate(parts, 1):
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                except OSError:
                    if not make:
                        raise
                    if _lstat(part, fd) is not None:
                        self._discard(fd, parts[:number])
                    os.mkdir(part, 0o700, dir_fd=fd)
                    self._made["/".join([*parts[:number], ""])] = None
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _remove(self, parts: list[str], change: Change) -> None:
        try:
            with self._open(parts[:-1], make=False) as fd:
                there = _lstat(parts[-1], fd)
                if there is None or stat.S_ISDIR(there.st_mode):
                    return
                aside = self._aside(fd, parts[-1])
                self._end(fd, aside, change.old, "/".join(parts))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            # ELOOP: the path is below a link. There is nothing to remove, because the link itself
            # is one of the changes.
            if error.errno != errno.ELOOP:
                raise
            return
        self._leave_empty(parts[:-1])

    def _leave_empty(self, parts: Sequence[str]) -> None:
        """Remove the directory if it is empty, then its parent, and so on up to the top. git does
        the same."""
        for length in range(len(parts), 0, -1):
            try:
                with self._open(parts[: length - 1], make=False) as fd:
                    os.rmdir(parts[length - 1], dir_fd=fd)
            except OSError:
                return

    def _write(self, parts: list[str], change: Change, content: bytes | Path) -> None:
        with self._open(parts[:-1], make=True) as fd:
            last = parts[-1]
            there = _lstat(last, fd)
            fresh = f".perdure-{secrets.token_hex(8)}"
            if change.mode == _LINK:
                os.symlink(
                    content if isinstance(content, bytes) else content.read_bytes(),
                    os.fsencode(fresh),
                    dir_fd=fd,
                )
            else:
                kind = stat.S_IFREG | (0o100 if change.mode == "100755" else 0)
                name = "/".join(parts)
                wanted = self._rights.of(
                    name.removesuffix(disarm.ASIDE) if self._outside else name, kind
                )
                if there is not None and stat.S_ISREG(there.st_mode):
                    now = there.st_mode
                else:
                    now = 0
                self._fill(fd, fresh, content, given(kind, wanted, self._umask, now))
            if there is not None and stat.S_ISDIR(there.st_mode):
                self._discard(fd, parts)
                there = None
            if there is None:
                os.rename(fresh, last, src_dir_fd=fd, dst_dir_fd=fd)
                return
            aside = self._aside(fd, last)
            os.rename(fresh, last, src_dir_fd=fd, dst_dir_fd=fd)
            self._end(fd, aside, change.old, "/".join(parts))

    def _fill(self, fd: int, name: str, content: bytes | Path, mode: int) -> None:
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
        with os.fdopen(made, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            os.fchmod(made, mode)

    def _aside(self, fd: int, name: str) -> str:
        aside = f".perdure-{secrets.token_hex(8)}"
        os.rename(name, aside, src_dir_fd=fd, dst_dir_fd=fd)
        return aside

    def _end(self, fd: int, aside: str, oid: str, name: str) -> None:
        """Delete a file that was moved aside if it equals the saved file; otherwise move it to the
        trash."""
        if self._digest(fd, aside) == oid:
            os.unlink(aside, dir_fd=fd)
        else:
            self._trash(fd, aside, name)

    def _digest(self, fd: int, name: str) -> str:
        there = os.lstat(name, dir_fd=fd)
        if stat.S_ISLNK(there.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=fd))
            return hashlib.new(self._shelf.form, b"blob %d\0" % len(target) + target).hexdigest()
        if not stat.S_ISREG(there.st_mode):
            return ""
        digest = hashlib.new(self._shelf.form, b"blob %d\0" % there.st_size)
        with os.fdopen(
            os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), "rb"
        ) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def _discard(self, fd: int, parts: Sequence[str]) -> None:
        self._trash(fd, self._aside(fd, parts[-1]), "/".join(parts))

    def _trash(self, fd: int, aside: str, name: str) -> None:
        place = self._shelf.top / name
        about = {
            "kind": "in the way",
            "why": f"in the way of a restore of {self._shelf.top}",
            "parts": {"in-the-way": str(place)},
        }
        target = trash.move_to_trash(
            self._places.trash(""),
            self._shelf.id,
            [("in-the-way", path_in(fd, place.parent, aside))],
            about,
        )
        self.notes.append(
            f"{name!r} was in the way and is not part of the checkpoint: it was moved to {target}."
        )

    def _contents(self, wanted: Sequence[Change]) -> Iterator[tuple[Change, bytes | Path]]:
        """Yield each change with its new content. Small contents are yielded as bytes, read in
        batches of a few MiB. Large ones are yielded as the path of a temporary file, which is
        removed before the next change."""
        ids = "".join(f"{change.new}\n" for change in wanted).encode()
        if wanted:
            sizes = []
            for line in self._shelf.run("cat-file", "--batch-check", stdin=ids).text.split("\n"):
                sizes.append(line.split(" "))
        else:
            sizes = []
        for change, said in zip(wanted, sizes, strict=True):
            if said[-1] == "missing" or said[1] != "blob":
                raise WorkspaceError(
                    f"The checkpoint is damaged: {change.name!r} is missing.",
                    "Restore an earlier one.",
                )
        batch: list[Change] = []
        total = 0
        for change, said in zip(wanted, sizes, strict=True):
            size = int(said[2])
            if size > _AT_ONCE:
                made = (
                    self._scratch
                    / self._shelf.for_directory(self._scratch).run("unpack-file", change.new).text
                )
                try:
                    yield change, made
                finally:
                    made.unlink(missing_ok=True)
                continue
            if total + size > _AT_ONCE:
                yield from self._batch(batch)
                batch, total = [], 0
            batch.append(change)
            total += size
        yield from self._batch(batch)

    def _batch(self, batch: Sequence[Change]) -> Iterator[tuple[Change, bytes]]:
        if not batch:
            return
        out = self._shelf.run(
            "cat-file", "--batch", stdin="".join(f"{change.new}\n" for change in batch).encode()
        ).stdout
        at = 0
        for change in batch:
            end = out.index(b"\n", at)
            size = int(out[at:end].split(b" ")[2])
            yield change, out[end + 1 : end + 1 + size]
            at = end + size + 2


def _is_target(content: bytes | Path) -> bool:
    """Return whether a link can have this content as its target."""
    target = content if isinstance(content, bytes) else content.read_bytes()
    return bool(target) and b"\0" not in target


def _lstat(name: str, fd: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return None
