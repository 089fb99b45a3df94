"""Chooses and claims names of workdirs below `{root}/.perdure/work`. A name is chosen when a run is
accepted, and claimed when its workdir is first locked.

A name depends only on (repository, agent, branch), unless another task already has the same short
hash. A file beside the locks stores the identity that owns a name. Like a lock file it is never
removed, so two tasks never share a directory. perdure up to 0.1 named workdirs by the whole
identity. Conversations are bound to those paths, so an identity that had such a workdir keeps it.
"""

from __future__ import annotations

import os
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.model import Workspace
from perdure.workspace.identity import Places, workdir_name
from perdure.workspace.locks import hold_lock, make_private, read, write

_CHARS = (6, 12, 26)
"""Lengths of the hash in a name, in characters. A longer hash is used only where another task owns
the shorter name."""


def choose_directory(places: Places, repo: str, branch: str, identity: str) -> Path:
    """Return the path of a workdir. Changes nothing. Raises WorkspaceError if no name is free."""
    # Look for the lock before the claims. A claim is durable before its workdir is locked. A lock
    # without a claim was therefore taken by perdure 0.1, which named workdirs by the whole
    # identity.
    locked = places.lock(identity).exists()
    names = [workdir_name(repo, branch, identity, chars) for chars in _CHARS]
    owners = [_owner(places, name) for name in names]
    if identity in owners:
        return places.work(names[owners.index(identity)])
    old = places.work(identity)
    if locked or os.path.lexists(old):
        return old
    if "" not in owners:
        raise WorkspaceError(
            f"No name is free for the workdir: {places.owner(names[-1])} does not belong to "
            f"{identity}.",
            "If perdure did not write that file, remove it.",
        )
    return places.work(names[owners.index("")])


def claim(places: Places, workspace: Workspace) -> None:
    """Record that the name of a workdir below `work` belongs to this workspace. Does nothing for
    other directories. Raises WorkspaceError if the name belongs to another task, if the workspace
    has another workdir, or if the record cannot be written."""
    path, identity = Path(workspace.path), workspace.id
    if not _is_workdir(places, workspace):
        return
    if path.name != identity and not _owner(places, path.name):
        file = places.owner(path.name)
        make_private(file.parent)
        with hold_lock(places.lock("names")):
            if not _owner(places, path.name):
                try:
                    write(file, identity)
                except OSError as error:
                    raise WorkspaceError(
                        f"{file} cannot be written: {error.strerror}.",
                        "Check the free space and the permissions of the root directory.",
                    ) from error
    if reason := conflict(places, workspace):
        raise WorkspaceError(reason, "Remove this run and start it again: perdure rm NAME")


def conflict(places: Places, workspace: Workspace) -> str:
    """Return why the workspace may not use its path: the records show another task there, or
    another workdir for this workspace. Empty if the workspace may use it."""
    path, identity = Path(workspace.path), workspace.id
    if not _is_workdir(places, workspace):
        return ""
    if path.name != identity:
        if _owner(places, path.name) in ("", identity):
            return ""
        return f"{path} belongs to another task of the same name."
    pattern = f"*-{identity[: _CHARS[0]]}*.owner"
    for file in sorted(places.owner("").parent.glob(pattern)):
        name = file.name.removesuffix(".owner")
        if _owner(places, name) == identity:
            return f"{path} is not used any more: the task's workdir is {places.work(name)}."
    return ""


def _is_workdir(places: Places, workspace: Workspace) -> bool:
    parent = Path(workspace.path).parent
    return bool(workspace.repo) and parent.resolve() == places.work("").resolve()


def _owner(places: Places, name: str) -> str:
    """Return the identity that owns a name; empty if the name is free."""
    return read(places.owner(name)).strip()
