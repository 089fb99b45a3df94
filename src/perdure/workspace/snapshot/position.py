"""Finds a workdir's files, its git directory, its repository, and its HEAD.

`checkpoint_repository` uses it to open a workdir's checkpoint repository. `refs` uses it to find
the repositories that hold the refs of checkpoints."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import WorkspaceError
from perdure.host.git import Git, on_disk
from perdure.model import Backend, Workspace
from perdure.workspace.locks import is_real_directory
from perdure.workspace.worktree import common_directory, git_directory


def locate_git(workspace: Workspace, path: Path, git: Git) -> tuple[Path, Path, Path] | None:
    """Return (top directory of the files, git directory of the workdir, git directory of the whole
    repository); None for a workdir without git. Raises WorkspaceError for a lost git directory."""
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
