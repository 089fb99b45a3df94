"""Writes, lists and deletes the refs that name a workdir's checkpoints. Also finds a workdir's git
directory, repository and HEAD (`locate_git`, `read_head`, `common_of`), which
`checkpoint_repository` needs to open the checkpoint repository.

A writer of refs holds the lock of the checkpoint repository, and every git that it starts inherits
this lock. So a git lock file next to one of these refs belongs to no running process. It is
removed, so that a killed git does not block later ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from msgspec.structs import replace

from perdure.errors import WorkspaceError
from perdure.host.git import Git, on_disk
from perdure.host.git.output import one_a_line
from perdure.model import Backend, Workspace
from perdure.workspace.identity import Places
from perdure.workspace.locks import git_works_in, hold_lock, is_real_directory
from perdure.workspace.worktree import common_directory, git_directory


def locate_git(workspace: Workspace, path: Path, git: Git) -> tuple[Path, Path, Path] | None:
    """Return three paths: the top directory of the files, the git directory of the workdir, and the
    git directory that all worktrees of the repository share. None for a workdir without git. Raises
    WorkspaceError for a lost git directory."""
    match workspace.backend:
        case Backend.TASK:
            return None
        case Backend.ISOLATED:
            admin = path / ".git"
            if not all(map(is_real_directory, (admin, admin / "objects", admin / "refs"))):
                raise WorkspaceError(
                    f"{path} has lost its git directory.",
                    "Nothing was changed. Inspect it, or move it away.",
                )
            return path, admin, admin
        case Backend.WORKTREE:
            if (known := git_directory(path)) is None:
                raise WorkspaceError(
                    f"{path} is no longer a worktree of {workspace.repo}.",
                    f"Try: git -C {workspace.repo} worktree repair {path}",
                )
            return path, known, common_directory(workspace.repo)
        case Backend.HERE:
            asked = git.at(path)
            found = asked.run("rev-parse", "--absolute-git-dir", good=(0, 128))
            if found.code:
                return None
            # git is called once for each path, because a path may contain a newline.
            absolute = ("rev-parse", "--path-format=absolute")
            top = asked.run(*absolute, "--show-toplevel").text
            common = asked.run(*absolute, "--git-common-dir").text
            return Path(top), Path(found.text), Path(common)


def read_head(repository: Git) -> tuple[str, str, str, str]:
    """Return the commit of HEAD, its tree's id, the branch, and the hash algorithm of object ids.
    Commit and tree are empty before the first commit. The tree is also empty if HEAD was read
    without starting git. The branch is empty if HEAD names a ref that is not below `refs/heads/`.
    """
    if repository.git_dir is not None and (known := on_disk.head(repository.git_dir)) is not None:
        return known[0], "", known[1], "sha1"
    asked = ("rev-parse", "HEAD", "HEAD^{tree}", "--symbolic-full-name", "HEAD")
    found = repository.run(*asked, good=(0, 128))
    if found.code:
        if repository.run("rev-parse", "--verify", "--quiet", "HEAD", good=(0, 1, 128)).code == 0:
            repository.run(*asked)
        branch = repository.run("symbolic-ref", "--quiet", "HEAD", good=(0, 1)).text
        return (
            "",
            "",
            _branch(branch),
            repository.run("rev-parse", "--show-object-format").text,
        )
    head, tree, name = found.text.split("\n", 2)
    return (
        head,
        tree,
        _branch(name),
        "sha256" if len(head) == 64 else "sha1",
    )


def _branch(name: str) -> str:
    if name.startswith("refs/heads/"):
        return name.removeprefix("refs/heads/")
    return ""


def common_of(workspace: Workspace) -> Path | None:
    """Return the repository that a worktree belongs to; None if it does not exist, or if the
    workdir is no worktree. This works even if the worktree's link to the repository is broken."""
    if workspace.backend is not Backend.WORKTREE:
        return None
    common = common_directory(workspace.repo)
    if is_real_directory(common / "objects"):
        return common
    return None


REFS = "refs/perdure/checkpoints"
OUTSIDE = "refs/perdure/outside"
"""Prefix of the refs that mark checkpoints from another machine. Such checkpoints are restored with
extra checks."""
LAST = "refs/perdure/last"
"""Prefix of the refs that name the commit of the last capture, so that gc keeps the objects that
the capture's index names."""


def update_refs(refs: Git, directory: Path, orders: Sequence[str]) -> None:
    """Write or delete refs, all of them or none. Each order is `update NAME COMMIT [OLD]`, `verify
    NAME COMMIT` or `delete NAME`. Raises GitFailed.

    For a deletion, git (2.39) briefly locks all packed refs of the repository, the user's included.
    During a deletion, a mark file exists in `directory`. If a later call finds the mark file, that
    deletion was killed. The call then removes the lock of the packed refs, unless that lock is
    older than the mark file, or git is running in one of the worktrees."""
    assert refs.git_dir is not None
    mark = directory / "deleting"
    for line in orders:
        (refs.git_dir / f"{line.split()[1]}.lock").unlink(missing_ok=True)
    packed = refs.git_dir / "packed-refs.lock"
    with contextlib.suppress(FileNotFoundError):
        is_newer = packed.stat().st_mtime_ns >= mark.stat().st_mtime_ns
        if is_newer and not any(git_works_in(tree.path) for tree in refs.worktrees()):
            packed.unlink()
    if deletes := directory.is_dir() and any(line.startswith("delete ") for line in orders):
        mark.touch()
    try:
        refs.run("update-ref", "--stdin", stdin=one_a_line(orders).encode())
    finally:
        if deletes and not packed.exists():
            mark.unlink(missing_ok=True)


def repositories_of(places: Places, workspace: Workspace, git: Git) -> list[Git]:
    """Return every repository that may hold refs of this workdir's checkpoints, even if the workdir
    is gone."""
    found = []
    if (places.checkpoint_repository(workspace.id) / "made").exists():
        found.append(git.at(places.root, places.checkpoint_repository(workspace.id)))
    if (
        workspace.backend is Backend.WORKTREE
        and (common := common_directory(workspace.repo)).is_dir()
    ):
        found.append(git.at(common, common))
    if (
        workspace.backend is Backend.HERE
        and Path(workspace.path).is_dir()
        and (place := locate_git(workspace, Path(workspace.path), git))
    ):
        found.append(git.at(place[2], place[2]))
    return found


def commits_by_number(places: Places, workspace: Workspace, git: Git) -> dict[int, str]:
    """Return the commits of the checkpoints by number, in ascending order."""
    below = f"{REFS}/{workspace.id}"
    found = []
    for keeper in repositories_of(places, workspace, git):
        for name, oid in keeper.refs(below).items():
            number = name.rpartition("/")[2]
            if number.isdecimal():
                found.append((int(number), oid))
    return dict(sorted(found))


def is_whole(keeper: Git, commit: str) -> bool:
    """Return whether a repository has every file of a checkpoint, and the parents of its commit."""
    parents = keeper.run(
        "rev-parse", "--verify", "--quiet", f"{commit}^@", good=(0, 1, 128)
    ).text.split()
    files = keeper.run(
        "rev-list", "--objects", "--quiet", f"{commit}^{{tree}}", good=(0, 1, 128), timeout_s=1800.0
    )
    return files.code == 0 and all(map(keeper.commit, (commit, *parents)))


def complete_repositories(
    places: Places, workspace: Workspace, git: Git, number: int, commit: str
) -> list[Git]:
    """Return the repositories that have the checkpoint's ref and its complete content."""
    name = f"{REFS}/{workspace.id}/{number}"
    found = []
    for keeper in repositories_of(places, workspace, git):
        if keeper.refs(name).get(name) == commit:
            found.append(keeper)
    return [keeper for keeper in found if is_whole(keeper, commit)]


def delete_refs(places: Places, workspace: Workspace, git: Git, which: Sequence[int]) -> None:
    """Delete the refs of these checkpoints. In a git directory of perdure's own, run git's
    automatic gc too."""
    with hold_lock(places.lock(f"{workspace.id}.shelf")) as fd:
        for keeper in repositories_of(places, workspace, replace(git, keep=(*git.keep, fd))):
            there = keeper.refs(f"{REFS}/{workspace.id}", f"{OUTSIDE}/{workspace.id}")
            names = []
            for number, kind in product(which, (REFS, OUTSIDE)):
                names.append(f"{kind}/{workspace.id}/{number}")
            gone = [name for name in names if name in there]
            if gone:
                orders = [f"delete {name}" for name in gone]
                update_refs(keeper, places.checkpoint_repository(workspace.id), orders)
            if keeper.git_dir == places.checkpoint_repository(workspace.id):
                settings = (("gc.auto", "2000"), ("gc.autoDetach", "false"))
                keeper.run("gc", "--auto", "--quiet", settings=settings, timeout_s=1800.0)
