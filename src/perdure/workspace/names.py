"""Names of workdirs below `{root}/.perdure/work`: chosen when a run is accepted, claimed when its
workdir is first locked.

A name depends on (repository, agent, branch) alone, as long as its short hash is nobody else's. A
file beside the locks says to which identity a name belongs; like a lock it is never removed, so two
tasks never share a directory. perdure up to 0.1 named workdirs by the whole identity. Conversations
are bound to those paths, so an identity that had one keeps it.
"""

from __future__ import annotations

import os
from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.model import Workspace
from perdure.workspace.identity import Places, workdir_name
from perdure.workspace.locks import held, make_private, read, write

_CHARS = (6, 12, 26)
"""Lengths of the hash: a longer one is used only where the shorter name belongs to another task."""


def choose(places: Places, repo: str, branch: str, identity: str) -> Path:
    """Return the path of a workdir. Changes nothing."""
    names = [workdir_name(repo, branch, identity, chars) for chars in _CHARS]
    owners = [read(places.owner(name)) for name in names]
    old = places.work(identity)
    # A lock without a claim was taken by a perdure that named the workdir by its identity.
    if os.path.lexists(old) or (identity not in owners and places.lock(identity).exists()):
        return old
    name = next(name for name, owner in zip(names, owners, strict=True) if owner in ("", identity))
    return places.work(name)


def claim(places: Places, workspace: Workspace) -> None:
    """Record that the name of a workdir below `work` belongs to this workspace. Does nothing for
    other directories. Raises WorkspaceError if the name is another task's."""
    path, identity = Path(workspace.path), workspace.id
    if not workspace.repo or path.parent != places.work("") or path.name == identity:
        return
    file = places.owner(path.name)
    owner = read(file)
    if not owner:
        make_private(file.parent)
        with held(places.lock("names")):
            owner = read(file)
            if not owner:
                write(file, identity)
                owner = identity
    if owner != identity:
        raise WorkspaceError(
            f"{path} belongs to another task of the same name.",
            "Remove this run and start it again: perdure rm NAME",
        )
