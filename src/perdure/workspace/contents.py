"""What lies below the root, each thing with what it is and when it was last used. Only looks; the
sweeper decides.

Only what is recognised by its place and the form of its name gets a kind: everything else is
`unknown`, and is kept. Lock files are not even listed: one that is removed while somebody opens it
makes two holders of one lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.lateclass import dataclass
from perdure.workspace.identity import Places
from perdure.workspace.locks import is_real_directory, read, write

_ID = re.compile(r"[a-z2-7]{26}")
OWN = frozenset({"work", "repos", "views", "shelves", "locks", "trash", "tmp", "warm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """`kind`: `workdir`, `view`, `shelf`, `clone_cache`, `scratch` or `unknown`. `id` is the
    workspace's or the cache's."""

    kind: str
    path: Path
    id: str = ""
    used: int = 0
    """The newest time of it, in ms; of a workdir only its top is looked at."""
    keep: str = ""
    """Why it must stay, whatever its age."""


def root_mark(places: Places, fresh: str) -> str:
    """The mark of the volume that the root lies on, made as `fresh` where there is none. Another
    mark than the last time means that another volume, or none, is mounted here."""
    mark = places.own / "root-id"
    if not read(mark):
        write(mark, fresh)
    return read(mark).strip()


def contents(places: Places) -> Iterator[Thing]:
    """Everything that perdure has below the root, or that lies where its own things do. Raises
    WorkspaceError if it cannot be listed."""
    try:
        yield from _contents(places)
    except OSError as error:
        raise WorkspaceError(
            f"{error.filename or places.root} cannot be listed: {error.strerror}",
            "is its volume mounted?",
        ) from error


def _contents(places: Places) -> Iterator[Thing]:
    own = places.own
    if not own.is_dir():
        return
    yield from (
        Thing(kind="unknown", path=path)
        for path in own.iterdir()
        if path.name not in OWN | {"root-id", places.git.name}
    )
    for path in _entries(own / "work"):
        if path.name.startswith(".stage-") and _ID.fullmatch(path.name.removeprefix(".stage-")):
            yield Thing(
                kind="scratch", path=path, id=path.name.removeprefix(".stage-"), used=newest(path)
            )
        else:
            yield _named("workdir", path, path.name)
    for kind, folder in (("view", "views"), ("shelf", "shelves")):
        yield from (
            _named(kind, path, path.name.removesuffix(".git")) for path in _entries(own / folder)
        )
    borrowed = _borrowed(places)
    for path in _entries(own / "repos"):
        if path.name.endswith(".stage"):
            yield Thing(
                kind="scratch", path=path, id=path.name.removesuffix(".stage"), used=newest(path)
            )
            continue
        thing = _named("cache", path, path.name.removesuffix(".git"))
        used = max(_time(path), _time(places.lock(thing.id).with_suffix(".finished")))
        by = next(
            (
                str(lender)
                for lender, directories in borrowed.items()
                if path / "objects" in directories
            ),
            "",
        )
        yield Thing(
            kind=thing.kind,
            path=path,
            id=thing.id,
            used=used,
            keep=f"{by} borrows from it" if by else "",
        )
    yield from (
        Thing(kind="scratch", path=path, used=newest(path)) for path in _entries(own / "tmp")
    )
    for service in places.root.iterdir():
        for task in (
            _entries(service / ".task")
            if service != own and is_real_directory(service / ".task")
            else ()
        ):
            yield Thing(kind="workdir", path=task, used=_time(task))


def _named(kind: str, path: Path, name: str) -> Thing:
    known = _ID.fullmatch(name) and is_real_directory(path)
    keep = "it is a link, and not a directory" if path.is_symlink() else ""
    return Thing(
        kind=kind if known else "unknown",
        path=path,
        id=name if known else "",
        used=_time(path),
        keep=keep,
    )


def _borrowed(places: Places) -> dict[Path, set[Path]]:
    """By each directory of ours that has objects, also in the trash, the stores of objects that it
    borrows from."""
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
    return sorted(directory.iterdir()) if is_real_directory(directory) else []


def _time(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return 0


def newest(path: Path) -> int:
    """The newest time of writing of anything in it, in ms."""
    found = _time(path)
    if is_real_directory(path):
        for directory, _, names in os.walk(path):
            for each in (Path(directory), *(Path(directory, name) for name in names)):
                with suppress(OSError):
                    found = max(found, _time(each))
    return found
