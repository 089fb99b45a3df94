"""Lists the project's own files in a workdir: tracked files, and new ones that are not ignored.
Used by the project map.

Without git, hidden directories and directories that a build recreates are skipped.
"""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from perdure.host.git import Git
from perdure.host.system.files import walk
from perdure.model import Workspace
from perdure.workspace.identity import Places
from perdure.workspace.snapshot.differences import REBUILDABLE
from perdure.workspace.view import open_workdir_git, retry_with_new_view

MOST = 200_000


def sources(places: Places, workspace: Workspace, git: Git) -> list[str]:
    """Return the files' names relative to the workdir, in no particular order. The names are
    untrusted text. A listed file may have been removed, or may be a link. Raises WorkspaceError,
    GitFailed."""
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
