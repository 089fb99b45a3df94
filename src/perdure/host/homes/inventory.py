"""Lists the content of a home (`survey`), and describes a directory of a home before it is moved
(`read_situation`). This module only reads. `link` and `unlink` act on the results.

The list has every file, link and directory; links are not followed. A SQLite database and its
`-wal` or `-journal` file are one entry. They are compared, moved and kept together, because the
database would be damaged without that file. The `-shm` file is not moved, because SQLite creates it
again.

The description of a directory says where it is, where it has to go, and what prevents the move.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from msgspec import Struct

from perdure.errors import Conflict, WorkspaceError
from perdure.host.homes.linked_homes import LINK, VARIABLE, Linked, LinkedHomes
from perdure.host.homes.volume import Volume
from perdure.protocols import Folder

PIECE = 1 << 20
SIDES = ("-wal", "-journal")
SHARED_MEMORY = "-shm"
MAGIC = b"SQLite format 3\0"


class HomeEntry(Struct, frozen=True):
    """A file, link or directory of a home. `name` is its path relative to the home. The entry of a
    database also stands for the files that belong to the database (see `sides`)."""

    name: str
    path: Path
    kind: int
    """File type bits of the mode (`stat.S_IFMT`)."""
    mode: int
    mtime_ns: int
    size: int
    sides: tuple[str, ...] = ()
    """Suffixes of the files that belong to a database, such as `-wal`. Empty files are not
    listed."""

    @property
    def is_file(self) -> bool:
        return self.kind == stat.S_IFREG

    @property
    def is_link(self) -> bool:
        return self.kind == stat.S_IFLNK

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def bytes(self) -> int:
        """Size of the file and of all files that belong to it, in bytes; 0 for a link or a
        directory."""
        if self.is_file:
            return self.size + sum(side(self.path, suffix).stat().st_size for suffix in self.sides)
        return 0

    def digest(self) -> str:
        """Return a SHA-256: for a file, of its content and of the files that belong to it; for a
        link, of its destination. Raises Conflict if the file changes while it is read."""
        if self.is_link:
            return hashlib.sha256(b"link\0" + os.fsencode(self.path.readlink())).hexdigest()
        if not self.sides:
            return hash_of(self.path)
        parts = [hash_of(self.path)]
        parts += [f"{suffix}:{hash_of(side(self.path, suffix))}" for suffix in self.sides]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def side(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def survey(top: Path, stays: Sequence[str] = ()) -> tuple[list[HomeEntry], list[str]]:
    """Return two lists: all entries below a directory, and the names of the entries that are not
    moved. Sockets and pipes are not moved. Entries that match one of the patterns in `stays` are
    not moved either. Both lists are empty if the directory does not exist."""
    found: list[HomeEntry] = []
    left: list[str] = []
    for thing in _walk(top, ""):
        is_special = not (thing.is_file or thing.is_link or thing.is_directory)
        if is_special or any(fnmatchcase(thing.name, pattern) for pattern in stays):
            left.append(thing.name)
        else:
            found.append(thing)
    return _joined(found), left


def entry_at(path: Path, name: str = "") -> HomeEntry | None:
    """Return the file, link or directory at a path, including the files that belong to it; None if
    nothing is there."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(state.st_mode) and is_database(path):
        sides = tuple(each for each in SIDES if _counts(side(path, each)))
    else:
        sides = ()
    return _entry(name or path.name, path, state, sides)


def _counts(path: Path) -> bool:
    try:
        state = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(state.st_mode) and state.st_size > 0


def _entry(name: str, path: Path, state: os.stat_result, sides: tuple[str, ...] = ()) -> HomeEntry:
    return HomeEntry(
        name,
        path,
        stat.S_IFMT(state.st_mode),
        stat.S_IMODE(state.st_mode),
        state.st_mtime_ns,
        state.st_size,
        sides,
    )


def _walk(directory: Path, below: str) -> Iterator[HomeEntry]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = f"{below}{entry.name}"
        try:
            state = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield _entry(name, directory / entry.name, state)
        if stat.S_ISDIR(state.st_mode):
            yield from _walk(directory / entry.name, f"{name}/")


def _joined(found: list[HomeEntry]) -> list[HomeEntry]:
    """Merge each database with the files that belong to it into one entry, and drop `-shm`
    files."""
    gone: set[str] = set()
    joined = []
    suffixes = (*SIDES, SHARED_MEMORY)
    for thing in found:
        if thing.is_file and any(side(thing.path, each).exists() for each in suffixes):
            whole = entry_at(thing.path, thing.name)
            if whole is not None and is_database(thing.path):
                gone |= {thing.name + each for each in suffixes}
                joined.append(whole)
                continue
        joined.append(thing)
    return [thing for thing in joined if thing.name not in gone]


def is_database(path: Path) -> bool:
    """Return whether a file is a SQLite database. An empty file next to a `-wal` or `-journal` file
    is a database that was just created."""
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError:
        return False
    return head == MAGIC or (not head and any(side(path, each).exists() for each in SIDES))


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a regular file, without following links. Raises Conflict if the file
    changes while it is read."""
    fd = open_file(path)
    try:
        before = os.fstat(fd)
        digest = hashlib.sha256()
        while piece := os.read(fd, PIECE):
            digest.update(piece)
        unchanged(path, before, os.fstat(fd))
    finally:
        os.close(fd)
    return digest.hexdigest()


def open_file(path: Path) -> int:
    """Open a regular file for reading and return its descriptor. Links are not followed, and the
    call never blocks on a pipe. Raises Conflict if it is not a regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Conflict(
            f"{path} was replaced while it was read.",
            "Stop the program that uses it, then try again.",
        )
    return fd


def unchanged(path: Path, before: os.stat_result, after: os.stat_result) -> None:
    """Raise Conflict if the size or modification time of a file differs between two calls of
    fstat."""
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Conflict(
            f"{path} changed while it was copied: an agent is running.",
            "Stop it, then try again.",
        )


def signature(top: Path) -> frozenset[tuple[str, int, int, int]]:
    """Return names, kinds, sizes and times of all entries below a directory. If a later call
    returns a different result, something was written in between."""
    found = set()
    for thing in _walk(top, ""):
        found.add(
            (
                thing.name,
                thing.kind,
                thing.size if not thing.is_directory else 0,
                thing.mtime_ns if thing.is_file else 0,
            )
        )
    return frozenset(found)


def parents(name: str) -> list[str]:
    """Return the parent directories of a relative path, the topmost first."""
    return list(map(str, reversed(PurePosixPath(name).parents)))[1:]


class HomeSituation(Struct, frozen=True, kw_only=True):
    """The state of one directory of a home. `place` is its old path, `target` its path on the
    volume, `linked` the record to be written, and `before` the record of an earlier `home link`."""

    folder: Folder
    volume: Volume
    place: Path
    target: Path
    linked: Linked
    before: Linked | None

    @property
    def is_linked(self) -> bool:
        """Whether `place` is a link to `target`."""
        return self.linked.is_linked

    @property
    def source(self) -> Path:
        """The real path of `place`, with all links resolved. Raises WorkspaceError if the links
        form a loop."""
        try:
            return self.place.resolve(strict=False)
        except (OSError, RuntimeError) as error:
            raise WorkspaceError(
                f"{self.place} is a symlink loop.", "Move the link aside, then try again."
            ) from error

    @property
    def has_old(self) -> bool:
        """Whether something other than a link to `target` is at `place`."""
        return os.path.lexists(self.place) and not self.is_linked

    @property
    def beside(self) -> list[Path]:
        """Files of the home that are next to `place` and have not been replaced by links yet."""
        paths = map(Path, self.linked.beside)
        return [path for path in paths if path.is_file() and not path.is_symlink()]

    @property
    def lost_its_link(self) -> bool:
        """Whether an earlier `home link` replaced `place` with a link. That call also replaced the
        files next to `place` with links. So a regular file that is next to `place` now is newer
        than its version on the volume."""
        return (
            self.before is not None
            and self.before.way == LINK
            and self.before.place == str(self.place)
        )

    def require(self) -> None:
        """Raise Conflict or WorkspaceError if the directory cannot be moved."""
        there = entry_at(self.target)
        if there is not None and not there.is_directory:
            raise WorkspaceError(
                f"{self.target} is not a directory.", "Move it aside, then try again."
            )
        if self.before is not None and (self.before.volume_id, self.before.target) != (
            self.volume.id,
            str(self.target),
        ):
            raise Conflict(
                f"The home of {self.linked.agent} is kept at {self.before.target}.",
                "Run perdure home unlink first.",
            )
        if self.is_linked:
            return
        source, target, found = self.source, self.target.resolve(), entry_at(self.place)
        if found is not None and not found.is_link and not found.is_directory:
            raise WorkspaceError(
                f"{self.place} is not a directory.", "Move it aside, then try again."
            )
        if source == target or source in target.parents or target in source.parents:
            raise Conflict(
                f"One of {self.place} and {self.target} is inside the other.",
                "Choose another directory for the volume.",
            )
        if source.exists() and source.stat().st_uid != os.geteuid():
            owner = source.stat().st_uid
            raise Conflict(
                f"{source} belongs to another user (uid {owner}).",
                "Run the command as that user: perdure does not change owners.",
            )


def read_situation(
    agent: str,
    folder: Folder,
    volume: Volume,
    state: Path,
    environ: Mapping[str, str],
    symlink: bool,
) -> HomeSituation:
    """Return the current state of one directory of a home. `environ` is the user's environment.
    `symlink`: plan a symbolic link even if an environment variable would be enough."""
    before = LinkedHomes(state).one(folder.name)
    value = volume.home(folder.name)
    target = value / folder.inner
    # If the variable already names the target, the user has added the `export` line to the shell
    # configuration. Then the old path cannot be read from the environment.
    if folder.at(environ) == target:
        environ = {name: text for name, text in environ.items() if name != folder.variable}
        if before is not None:
            root = Path(before.was)
        else:
            root = folder.root(environ)
    else:
        root = folder.root(environ)
    place = Path(os.path.normpath(root / folder.inner))
    usual = folder.at({"HOME": environ.get("HOME", "/")})
    if not environ.get(folder.variable) or place == usual:
        beside = [Path(environ.get("HOME") or "/", name) for name in folder.extra_files]
    else:
        beside = []
    linked = Linked(
        agent=agent,
        name=folder.name,
        volume=str(volume.path),
        volume_id=volume.id,
        target=str(target),
        place=str(place),
        way=VARIABLE if folder.own and not symlink else LINK,
        variable=folder.variable,
        value=str(value),
        was=os.path.normpath(root),
        beside=tuple(map(str, beside)),
    )
    return HomeSituation(
        folder=folder, volume=volume, place=place, target=target, linked=linked, before=before
    )
