"""Brings the uncommitted work of one workdir into another that stands at the same commit: for a fork. The source is only read.

Which files differ is seen through a view, so no filter, hook or setting of the repository takes part, and the bytes are copied as
they are, with their times and their modes. What git ignores stays behind, and so does the index: what was staged is there, unstaged.
Without git everything is copied.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.git import Git
from perdure.model import Workspace
from perdure.workspace.identity import Places
from perdure.workspace.places import is_real_directory
from perdure.workspace.view import again, files, looking_alone


def carry(places: Places, source: Workspace, target: Workspace, git: Git) -> None:
    """Makes the target's files those of the source. Both must be there, at one commit, and nobody may work in the target."""
    again(places, source, lambda: _carry(places, source, target, git), alone=True)


def _carry(places: Places, source: Workspace, target: Workspace, git: Git) -> None:
    with looking_alone(places, source, git) as looker:
        if looker is None:
            _copy_all(Path(source.path), Path(target.path), files(Path(source.path)))
            return
        status = looker.status()
        top, to = looker.top, Path(target.path)
        names = [name.rstrip("/") for name in (*status.changed, *status.untracked)]
        # Deletions first: a directory may stand now where a link or a file was.
        for name in names:
            if not os.path.lexists(top / name):
                _remove(to, name)
        for name in names:
            nested = is_real_directory(top / name)
            _copy_all(top, to, (f"{name}/{below}" for below in files(top / name)) if nested else [name])


def _copy_all(top: Path, to: Path, names: Iterable[str]) -> None:
    for name in names:
        source = top / name
        try:
            kind = source.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISREG(kind) or stat.S_ISLNK(kind):
            target = _parents(to, name)
            _clear(target)
            shutil.copy2(source, target, follow_symlinks=False)


def _parents(to: Path, name: str) -> Path:
    """Makes the directories above a file, none of them a link: it would lead out of the workdir."""
    place = to
    for part in Path(name).parts[:-1]:
        place /= part
        if place.is_symlink() or place.is_file():
            place.unlink()
        place.mkdir(exist_ok=True)
    return place / Path(name).name


def _clear(path: Path) -> None:
    if is_real_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove(to: Path, name: str) -> None:
    """Takes a file away, and directories that are empty then."""
    path = to / name
    if any(parent.is_symlink() for parent in path.parents if to in parent.parents):
        raise WorkspaceError(f"{path} lies behind a link.", "Look at what the agent made of its workdir.")
    _clear(path)
    for parent in path.parents:
        if parent == to or any(parent.iterdir()):
            return
        parent.rmdir()
