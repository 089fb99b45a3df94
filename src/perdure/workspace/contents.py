"""Lists what is below the root (`contents`), and the project's own files in a workdir (`sources`).
Changes nothing, except that `root_volume_id` may write the root's id.

`contents` gives the kind and the last use of each item; the sweeper decides what to remove. An item
is recognized by its place and the form of its name. Any other item has the kind `unknown` and is
kept. Lock files are not listed: if one were removed while another process opened it, two processes
could hold the same lock.

`sources` is used by the project map. The project's own files are the tracked files, and new files
that are not ignored.

Without git, all files count, except those in hidden directories and in directories that a build
recreates.
"""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from perdure.errors import WorkspaceError
from perdure.host.git import Git
from perdure.host.system.files import walk
from perdure.model import Workspace
from perdure.patterns import late_pattern
from perdure.workspace.identity import Places
from perdure.workspace.locks import is_real_directory, read, write
from perdure.workspace.snapshot.differences import REBUILDABLE
from perdure.workspace.view import open_workdir_git, retry_with_new_view

_ID = late_pattern(r"[a-z2-7]{26}")
OWN_DIRECTORIES = frozenset(
    {"work", "repos", "spares", "views", "shelves", "locks", "trash", "tmp", "warm"}
)


class RootItem(Struct, frozen=True, kw_only=True):
    """One item below the root. `kind`: `workdir`, `view` (see `view`), `shelf` (a checkpoint
    repository), `cache` (see `isolated`), `scratch` (temporary or half-made) or `unknown`. `id` is
    the id of the workspace or of the cache; empty if it has none."""

    kind: str
    path: Path
    id: str = ""
    used: int = 0
    """Newest modification time of the item's files, in ms. For a workdir, only its top directory
    counts."""
    keep: str = ""
    """Reason why the item must be kept, however old it is; empty if there is none."""


def root_volume_id(places: Places, fresh: str) -> str:
    """Return the id of the root's volume, which is stored in a file. If there is no such file,
    store `fresh` as the id. If the id is not the same as in an earlier call, the volume is not
    mounted, or another volume is mounted in its place."""
    mark = places.own / "root-id"
    if not read(mark):
        write(mark, fresh)
    return read(mark).strip()


def contents(places: Places) -> Iterator[RootItem]:
    """Yield every item in `.perdure`, perdure's own directory below the root, whether perdure made
    the item or not. Also yield the directory of each task of a service. The directories of locks,
    of waiting agents and of the trash are not searched. Raises WorkspaceError if a directory cannot
    be listed."""
    try:
        yield from _contents(places)
    except OSError as error:
        raise WorkspaceError(
            f"{error.filename or places.root} cannot be listed: {error.strerror}",
            "check whether its volume is mounted",
        ) from error


def _contents(places: Places) -> Iterator[RootItem]:
    own = places.own
    if not own.is_dir():
        return
    for path in own.iterdir():
        if path.name not in OWN_DIRECTORIES | {"root-id", places.git.name}:
            yield RootItem(kind="unknown", path=path)
    for path in _entries(own / "work"):
        if path.name.startswith(".stage-") and _ID.fullmatch(path.name.removeprefix(".stage-")):
            yield RootItem(
                kind="scratch", path=path, id=path.name.removeprefix(".stage-"), used=newest(path)
            )
        else:
            yield _item("workdir", path, read(places.owner(path.name)) or path.name)
    for kind, folder in (("view", "views"), ("shelf", "shelves")):
        for path in _entries(own / folder):
            yield _item(kind, path, path.name.removesuffix(".git"))
    borrowed = _borrowed(places)
    for path in _entries(own / "repos"):
        if path.name.endswith(".stage"):
            yield RootItem(
                kind="scratch", path=path, id=path.name.removesuffix(".stage"), used=newest(path)
            )
            continue
        thing = _item("cache", path, path.name.removesuffix(".git"))
        used = max(_time(path), _time(places.lock(thing.id).with_suffix(".finished")))
        keep = ""
        for lender, directories in borrowed.items():
            if path / "objects" in directories:
                keep = f"{lender} borrows from it"
                break
        yield RootItem(kind=thing.kind, path=path, id=thing.id, used=used, keep=keep)
    for path in _entries(own / "spares"):
        repository = path.name.removeprefix(".stage-").partition(".")[0]
        yield RootItem(kind="scratch", path=path, id=repository, used=_time(path))
    for path in _entries(own / "tmp"):
        yield RootItem(kind="scratch", path=path, used=newest(path))
    for service in places.root.iterdir():
        for task in (
            _entries(service / ".task")
            if service != own and is_real_directory(service / ".task")
            else ()
        ):
            yield RootItem(kind="workdir", path=task, used=_time(task))


def _item(kind: str, path: Path, name: str) -> RootItem:
    known = _ID.fullmatch(name) and is_real_directory(path)
    keep = "it is a link, not a directory" if path.is_symlink() else ""
    return RootItem(
        kind=kind if known else "unknown",
        path=path,
        id=name if known else "",
        used=_time(path),
        keep=keep,
    )


def _borrowed(places: Places) -> dict[Path, set[Path]]:
    """Return for each of perdure's git directories the object stores from which it borrows.
    Directories in the trash are included."""
    found = {}
    for pattern in (
        "work/*/.git",
        "work/.stage-*/.git",
        "trash/*/workdir/.git",
        "views/*",
        "shelves/*",
        "trash/*/*",
        "trash/*/*/.git",
    ):
        for directory in places.own.glob(pattern):
            if lines := read(directory / "objects/info/alternates").splitlines():
                found[directory] = {Path(line.strip('"')) for line in lines}
    return found


def _entries(directory: Path) -> list[Path]:
    if is_real_directory(directory):
        return sorted(directory.iterdir())
    return []


def _time(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return 0


def newest(path: Path) -> int:
    """Return the newest modification time of anything at or below the path, in ms."""
    found = _time(path)
    if is_real_directory(path):
        for directory, _, names in walk(path):
            for each in (Path(directory), *(Path(directory, name) for name in names)):
                with suppress(OSError):
                    found = max(found, _time(each))
    return found


MOST = 200_000


def sources(places: Places, workspace: Workspace, git: Git) -> list[str]:
    """Return the names of the project's own files, relative to the workdir, in no particular order.
    The names are untrusted text. A listed file may have been removed, or may be a link. Raises
    WorkspaceError, GitFailed."""
    return retry_with_new_view(places, workspace, lambda: _sources(places, workspace, git))


def _sources(places: Places, workspace: Workspace, git: Git) -> list[str]:
    path = Path(workspace.path)
    with open_workdir_git(places, workspace, git) as workdir_git:
        if workdir_git is None:
            return list(itertools.islice(_files_below(path), MOST))
        listed = workdir_git.inspector.run(
            "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"
        ).stdout
        inner = os.path.relpath(path.resolve(), workdir_git.top.resolve())
    names = [name for name in os.fsdecode(listed).split("\0") if name and not name.endswith("/")]
    if inner == ".":
        return names
    return [name[len(inner) + 1 :] for name in names if name.startswith(f"{inner}/")]


def _files_below(top: Path) -> Iterator[str]:
    for directory, folders, names in walk(top):
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(set(visible) - REBUILDABLE)
        inner = os.path.relpath(directory, top)
        for name in sorted(names):
            yield name if inner == "." else posixpath.join(inner, name)
