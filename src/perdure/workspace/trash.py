"""Manages the trash: removed files and directories, one entry for each removal, with a description
and the original paths.

`removal` calls `move_to_trash` for workdirs, and the sweeper calls it for everything else. `perdure
trash` calls `entries` and `restore`. The sweeper calls `purge` after the grace period. Nothing else
in perdure deletes what an agent made. An entry is a directory with `about.json` and the parts that
were moved into it. A part is moved completely, by a rename, or not at all, with an error.

The contents were written by an agent. So a purge follows no link and enters no other volume. It
refuses an entry that a process still uses, or that was written to after it was moved.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from perdure.errors import Conflict, NotFound, PerdureError, WorkspaceError
from perdure.host.system.files import flush, remove_tree
from perdure.workspace.identity import Places
from perdure.workspace.locks import is_real_directory, make_private, sync, write

if TYPE_CHECKING:
    from perdure.model.disk_reports import TrashEntry

ABOUT = "about.json"
CLEANUP_VERBS = ("gc", "clean-up")
"""Values of an entry's `verb` for workdirs that were removed when their work was finished. Such a
workdir is restored automatically when the work is continued."""
SETTLED_MS = 60_000
"""Time after the move into the trash, in ms. If a file of the entry was written to later than this,
a process still uses the entry."""


class Entry(Struct, frozen=True, kw_only=True):
    """One entry of the trash. `unsaved` says what would be lost with the entry. If `unsaved` is
    None, the loss is not known, and the entry is never purged automatically."""

    id: str
    path: Path
    at: int
    """Time of the move into the trash, in ms since 1970; 0 if unknown."""
    kind: str = "unknown"
    why: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Original path of each part, by the part's name in the entry."""
    unsaved: tuple[str, ...] | None = None
    """Sentences on content that was saved nowhere else when it was moved; None if unknown."""
    about: Mapping[str, Any] = field(default_factory=dict)

    def report(self) -> TrashEntry:
        """Return the entry as `perdure trash --json` shows it."""
        from perdure.model.disk_reports import TrashEntry

        return TrashEntry(
            id=self.id,
            at=self.at or None,
            kind=self.kind,
            run=str(self.about.get("run", "")),
            why=self.why,
            verb=str(self.about.get("verb", "")),
            path=str(self.path),
            parts=dict(self.parts),
            unsaved=None if self.unsaved is None else list(self.unsaved),
        )


def move_to_trash(
    directory: Path, name: str, parts: Sequence[tuple[str, Path]], about: Mapping[str, Any]
) -> Path:
    """Move each part into a new entry; return the entry's directory. Raises WorkspaceError where a
    part cannot be moved; the parts before it are then in the entry.

    A part on another file system is copied, and the original is removed when the copy is durable.
    `parts` in `about` overrides the paths to which the parts are restored.
    """
    now = time.time_ns()
    entry = make_private(directory / f"{name}-{now}")
    said = {
        "format": 1,
        "at": now // 1_000_000,
        "parts": {label: str(path) for label, path in parts},
        **about,
    }
    try:
        write(entry / ABOUT, json.dumps(said, indent=2))
        for label, path in parts:
            move(path, entry / label)
    except OSError as error:
        with suppress(OSError):
            if [each.name for each in entry.iterdir()] in ([], [ABOUT]):
                shutil.rmtree(entry)
        raise WorkspaceError(
            f"{error.filename or entry} cannot be moved to the trash: {error.strerror or error}.",
            "perdure du",
        ) from error
    sync(entry)
    return entry


def move(path: Path, target: Path) -> None:
    """Rename a file or directory. On another file system, copy it and then remove the original.
    Raises OSError."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_over(path, target)
    sync(path.parent)


def _copy_over(path: Path, target: Path) -> None:
    """Copy a file or directory to another file system and remove the original. First the copy is
    completed, made durable and renamed to its final name. Then one rename removes the original. If
    the original was written to meanwhile, it stays. Raises OSError."""
    before = _signature(path)
    # The copy first gets a temporary name, so that an interrupted copy does not look complete.
    staged = target.with_name(f"{target.name}.part")
    if is_real_directory(path):
        _copy_tree(path, staged)
    else:
        _copy_one(str(path), str(staged))
    flush(target.parent)
    if _signature(path) != before:
        raise OSError(errno.EBUSY, "it changed while it was copied", str(path))
    staged.rename(target)
    sync(target.parent)
    gone = path.with_name(f".perdure-gone-{time.time_ns()}")
    path.rename(gone)
    # The copy is complete by now, so nothing is lost if part of the original cannot be deleted. The
    # original's new name shows that it is not a workdir.
    with suppress(OSError):
        remove_tree(gone) if is_real_directory(gone) else gone.unlink()


def _copy_tree(path: Path, target: Path) -> None:
    """Copy a directory. Raises OSError, also if directories are nested too deeply for a copy."""
    try:
        shutil.copytree(path, target, symlinks=True, copy_function=_copy_one)
    except RecursionError:
        reason = "it has too many levels of directories"
        raise OSError(errno.ENAMETOOLONG, reason, str(path)) from None


def _copy_one(source: str, target: str) -> None:
    """Copy a file or link; recreate a pipe or a socket, which holds no data."""
    mode = os.lstat(source).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        os.mknod(target, mode)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _signature(path: Path) -> list[tuple[str, int, int, int]]:
    """Return inode, size and modification time of everything at and below the path. Another result
    later shows that something was changed. Raises OSError."""
    found = [(path, path.lstat()), *(_walk(path) if is_real_directory(path) else ())]
    result = []
    for each, status in found:
        result.append((str(each), status.st_ino, status.st_size, status.st_mtime_ns))
    return sorted(result)


def entries(directory: Path) -> list[Entry]:
    """Return all entries, oldest first, including those without a readable `about.json`."""
    if not is_real_directory(directory):
        return []
    found = [_read(path) for path in directory.iterdir() if is_real_directory(path)]
    return sorted(found, key=lambda entry: (entry.at, entry.id))


def is_cleaned(entry: Entry, path: str, run: str) -> bool:
    """Return whether the entry is the workdir from `path` that a clean-up removed at the end of
    this run."""
    about, there = entry.about, os.path.lexists(entry.path / "workdir")
    return (
        there
        and about.get("verb") in CLEANUP_VERBS
        and about.get("path") == path
        and run in (about.get("runs") or [])
    )


def _read(path: Path) -> Entry:
    about: Mapping[str, Any] = {}
    with suppress(OSError, ValueError):
        loaded = json.loads((path / ABOUT).read_text(encoding="utf-8", errors="surrogateescape"))
        about = loaded if isinstance(loaded, dict) else {}
    unsaved, parts = about.get("unsaved"), about.get("parts")
    if not isinstance(parts, dict):
        parts = {}
    return Entry(
        id=path.name,
        path=path,
        at=int(about["at"]) if isinstance(about.get("at"), int) else 0,
        kind=str(about.get("kind", "unknown")),
        why=str(about.get("why", "")),
        parts={str(label): str(place) for label, place in parts.items()},
        unsaved=tuple(map(str, unsaved)) if isinstance(unsaved, list) else None,
        about=about,
    )


def find(directories: Sequence[Path], name: str) -> Entry:
    """Return the entry with this id, or with a unique prefix of it. Raises NotFound."""
    found = []
    for entry in chain.from_iterable(map(entries, directories)):
        if entry.id.startswith(name):
            found.append(entry)
    exact = [entry for entry in found if entry.id == name]
    if len(exact or found) != 1 or not name:
        if found and name:
            several = f"{len(found)} entries of the trash begin with {name!r}"
        else:
            several = f"There is no entry {name!r} in the trash"
        raise NotFound(several, "perdure trash")
    return (exact or found)[0]


def restore(entry: Entry) -> list[Path]:
    """Move the parts back to their original paths, and return those paths. Files that are no part
    of the entry stay in its directory. If an admin directory had to get another name, the
    worktree's link to it is updated. Raises Conflict if something is in the way, NotFound where the
    original path is not known."""
    there = {}
    for label, original in entry.parts.items():
        if os.path.lexists(entry.path / label):
            there[label] = Path(original)
    if not there:
        raise NotFound(
            f"The original place of {entry.id} is unknown, so nothing was restored",
            f"take what you need from {entry.path}",
        )
    taken = []
    for label, place in there.items():
        if not label.startswith("admin") and os.path.lexists(place):
            taken.append(place)
    if taken:
        raise Conflict(
            f"{taken[0]} exists again, so nothing was restored",
            "move it away first, or take what you need from the trash",
        )
    for place in there.values():
        if not place.parent.is_dir():
            make_private(place.parent)
    back = []
    for label, place in sorted(there.items()):
        target = place
        while label.startswith("admin") and os.path.lexists(target):
            target = target.with_name(f"{target.name}-1")
        move(entry.path / label, target)
        back.append(target)
        pointer = Path(entry.parts.get("workdir", "")) / ".git"
        if target != place and (entry.path / "workdir/.git").is_file():
            write(entry.path / "workdir/.git", f"gitdir: {target}\n")
        elif target != place and pointer.is_file():
            write(pointer, f"gitdir: {target}\n")
    if [each.name for each in entry.path.iterdir()] == [ABOUT]:
        shutil.rmtree(entry.path)
    sync(entry.path.parent)
    return back


def purge_obstacle(entry: Entry, inside: Sequence[int] = ()) -> str:
    """Return the reason why an entry must not be deleted now, as a clause; empty if it may be
    deleted. `inside`: processes whose current directory is in the entry."""
    if inside:
        return f"process {inside[0]} works in it"
    try:
        device = entry.path.stat().st_dev
        for path, status in _walk(entry.path):
            if status.st_dev != device:
                return f"another volume is mounted at {path}"
            # Compare the change time (ctime): unlike the modification time, no program can set it.
            if (
                entry.at
                and stat.S_ISREG(status.st_mode)
                and status.st_ctime_ns // 1_000_000 > entry.at + SETTLED_MS
            ):
                return f"{path} was written to after it was removed"
    except OSError as error:
        return f"it cannot be read: {error}"
    return ""


def _walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything below a directory, without following links. Raises OSError for a directory
    that cannot be read."""
    waiting = [str(top)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for each in found:
                status = each.stat(follow_symlinks=False)
                yield Path(each.path), status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(each.path)


def purge(entry: Entry) -> None:
    """Delete an entry permanently. Raises WorkspaceError where part of it cannot be deleted."""
    doomed = entry.path.with_name(f".doomed-{entry.id}")
    try:
        entry.path.rename(doomed)
        sync(doomed.parent)
        remove_tree(doomed)
    except OSError as error:
        raise WorkspaceError(
            f"{entry.path} cannot be deleted: {error}", "check the owners of the files in it"
        ) from error


def finish_purges(directory: Path) -> None:
    """Finish the deletions of entries that were interrupted by a kill."""
    for doomed in directory.glob(".doomed-*"):
        with suppress(OSError, PerdureError):
            remove_tree(doomed)


def discard(places: Places, workspace_id: str, leftover: Path, label: str) -> Path | None:
    """Move a leftover of an interrupted step into the trash and return its new path. An empty
    directory is removed instead. Returns None if nothing was moved."""
    if not os.path.lexists(leftover):
        return None
    with suppress(OSError):
        leftover.rmdir()
        return None
    target = make_private(places.trash(f"{workspace_id}-{time.time_ns()}")) / label
    move(leftover, target)
    return target
