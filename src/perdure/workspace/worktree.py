"""The `worktree` backend: the workdir is a linked worktree of the user's own repository. It belongs
to the repository's trust domain, and no objects are copied.

`git worktree add` is not crash-safe: a kill leaves a locked admin directory, a directory without an
index, or lock files. So a mark file is written before the first step and removed after the last
step. git's own records are changed under the repository's lock. Files are written under the
workdir's lock, so that many workdirs of one repository can be made at once.

A process that finds the mark file either keeps a workdir that turns out to be complete, or moves
the remains to the trash and starts over. Files without a mark file are somebody's work and are
never moved. The branch is created by plumbing commands with full ref names, because `worktree add
-b` passes its argument to `git branch` unguarded (a branch named `-D` deletes).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from pathlib import Path

from msgspec.structs import replace

from perdure.errors import GitFailed, UsageError, WorkspaceError
from perdure.host.git import Git, on_disk
from perdure.model import Workspace
from perdure.workspace.identity import Places, identify
from perdure.workspace.locks import (
    flush_each,
    hold_lock,
    is_real_directory,
    make_private,
    read,
    sync,
    write,
)

LOCKED = "perdure: a task's workdir"
CHECKOUT_INDEX = "perdure-checkout-index"
"""Name of a file in the admin directory of a new worktree. It is the git index that git wrote when
it checked out the files, kept for `snapshot.checkout`."""
_CONVERTING = ("crlf", "eol", "ident", "filter", "encoding")
"""Words that occur in attributes and settings that make git write a file with other content than
its blob (gitattributes(5))."""
_UNUSUAL = (*_CONVERTING, "attr", "include", "symlinks", "sparse", "worktreeconfig")
"""Words that occur in settings that may give a new worktree other files than the tree of HEAD
has."""
_MOST_READ = 1 << 16
"""Maximum size of a file that is searched for these words, in bytes."""


def git_directory(path: Path) -> Path | None:
    """Return the admin directory that the file `path/.git` names; None if there is no such file, or
    if that directory does not name `path`."""
    admin = _git_directory_of_link(path)
    if admin and _workdir_of_admin(admin) == path / ".git":
        return admin
    return None


def _git_directory_of_link(path: Path) -> Path | None:
    pointer = read(path / ".git")
    if not pointer.startswith("gitdir: "):
        return None
    return Path(os.path.normpath(path / pointer.removeprefix("gitdir: ").rstrip("\n")))


def _workdir_of_admin(admin: Path) -> Path | None:
    """Return the `.git` file that an admin directory names; None if it names none. git may have
    written a relative path."""
    back = read(admin / "gitdir").rstrip("\n")
    if back:
        return Path(os.path.normpath(admin / back))
    return None


def common_directory(repo: str) -> Path:
    """Return the git directory of a repository. `repo` is a checkout's top directory or a bare
    repository, as in `Workspace.repo`."""
    if is_real_directory(Path(repo) / ".git"):
        return Path(repo) / ".git"
    return Path(repo)


def repository_lock(places: Places, repo: str) -> Path:
    return places.lock(identify("repository", repo))


def check_branch_free(git: Git, branch: str, path: Path) -> str:
    """Return the commit of the branch; empty if the branch does not exist. Raises UsageError if the
    name is a parent or a child of an existing branch name (`a` and `a/b`), WorkspaceError if the
    branch is checked out elsewhere."""
    full = f"refs/heads/{branch}"
    top = f"refs/heads/{branch.partition('/')[0]}"
    if git.git_dir is not None:
        there = on_disk.refs(git.git_dir, top)
    else:
        there = None
    if there is None:
        there = git.refs(top)
    for name in there:
        if name.startswith(full + "/") or full.startswith(name + "/"):
            other = name.removeprefix("refs/heads/")
            raise UsageError(
                f"The branch {branch!r} conflicts with {other!r}: git stores one as a file, the "
                f"other as a directory.",
                "Use another --branch.",
            )
    if full in there:
        for worktree in git.worktrees():
            if worktree.branch == full and worktree.path != path:
                raise WorkspaceError(
                    f"The branch {branch!r} is checked out in {worktree.path}.",
                    "Use another --branch, or work there with --here.",
                )
    return there.get(full, "")


def is_checked_out(git: Git, ref: str) -> bool:
    """Return whether a working directory of the repository is on this branch."""
    return any(worktree.branch == ref for worktree in git.worktrees())


def prepare(places: Places, workspace: Workspace, git: Git) -> tuple[bool, list[str]]:
    """Make, recover or reuse the worktree. Return whether it was made, and notes for a person."""
    path = Path(workspace.path)
    mark = places.making(workspace.id)
    if not mark.exists() and git_directory(path) is not None:
        return False, []
    common = common_directory(workspace.repo)
    if not common.is_dir():
        raise WorkspaceError(
            f"The repository {workspace.repo} does not exist.",
            "Restore it, or mount its volume. The workdir was not changed.",
        )
    # If perdure is killed, a git process that it started may live on. That process still holds this
    # lock.
    with hold_lock(places.lock(f"{workspace.id}.making")) as own:
        git = Git(
            cwd=common,
            git_dir=common,
            ceiling=places.root,
            keep=(*git.keep, own),
            environ=git.environ,
            memory=git.memory,
        )
        with hold_lock(repository_lock(places, workspace.repo)) as shared:
            created, notes = _register(
                places, workspace, replace(git, keep=(*git.keep, shared)), common
            )
        if mark.exists():
            known = on_disk.head(path / ".git")
            head = known[0] if known is not None else ""
            git.at(path, path / ".git", path).run(
                "read-tree", "--reset", "-u", head or "HEAD", timeout_s=1800.0
            )
            if head:
                _keep_index_of_checkout(places.checkout(workspace.id), path, common, head)
            # The files are made durable before the mark file is removed. So even after a power cut,
            # a workdir without a mark file has all its files.
            flush_each(path, common)
            mark.unlink()
            sync(mark.parent)
    return created, notes


def _keep_index_of_checkout(note: Path, path: Path, common: Path, head: str) -> None:
    """Keep the index of a worktree whose files git has just written, so that the first checkpoint
    need not read the files. Keep nothing if a file may have other content than its blob. `head`:
    the commit that was checked out. The file `note` gets three words: `head`, and the index's
    modification time and SHA-256."""
    note.unlink(missing_ok=True)
    if (
        _may_have(common / "info/attributes", _CONVERTING)
        or _may_have(path / ".gitattributes", _CONVERTING)
        or _may_have(common / "config", _UNUSUAL)
    ):
        return
    admin = git_directory(path)
    # git compares the times of files with that of the index. Another file system may have another
    # clock.
    if admin is None or admin.stat().st_dev != path.stat().st_dev:
        return
    (admin / CHECKOUT_INDEX).unlink(missing_ok=True)
    try:
        # A link needs no space. git replaces its index by another file and never writes into it.
        os.link(admin / "index", admin / CHECKOUT_INDEX)
    except OSError:
        return  # This file system has no hard links.
    seen = (admin / CHECKOUT_INDEX).stat()
    digest = hashlib.sha256((admin / CHECKOUT_INDEX).read_bytes()).hexdigest()
    note.write_text(f"{head} {seen.st_mtime_ns} {digest}\n", "ascii")


def _may_have(path: Path, words: tuple[str, ...]) -> bool:
    """Return whether a file has one of the words, or cannot be searched: it is large, or a link."""
    try:
        seen = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(seen.st_mode) or seen.st_size > _MOST_READ:
        return True
    content = read(path).lower()
    return any(word in content for word in words)


def _register(
    places: Places, workspace: Workspace, git: Git, common: Path
) -> tuple[bool, list[str]]:
    """Register the worktree with git, without its files. The caller removes the mark file when the
    files are written. Return whether the worktree was made, and notes for a person."""
    path, mark = Path(workspace.path), places.making(workspace.id)
    cut_off = mark.exists()
    if not cut_off and git_directory(path) is not None:
        return False, []
    if not cut_off and _relink(git, common, workspace):
        return False, [
            f"git had lost this worktree. It is linked again, on {workspace.branch}: {_KEPT}"
        ]
    if not cut_off:
        _require_own_worktree(path, workspace)
    notes = _recover(places, workspace, git, common, cut_off)
    if notes is None:
        flush_each(path, common)
        mark.unlink()
        return True, ["An interrupted creation had been complete."]
    make_private(mark.parent)
    write(mark, workspace.path)
    _create(places, workspace, git, path, notes)
    return True, notes


_KEPT = "all files are unchanged; what was staged, and a merge or rebase in progress, is lost."


def _relink(git: Git, common: Path, workspace: Workspace) -> bool:
    """Recreate a lost admin directory of a worktree if that is safe. Return whether it was
    recreated. It is safe if the `.git` file still names that directory, and the branch exists and
    is checked out nowhere.

    Writes no file of the workdir. The directory is built beside its final place and renamed. So
    after a kill, git never uses a half-made directory.
    """
    path, full = Path(workspace.path), f"refs/heads/{workspace.branch}"
    admin = _git_directory_of_link(path)
    if (
        admin is None
        or path.is_symlink()
        or admin.parent != common / "worktrees"
        or os.path.lexists(admin)
    ):
        return False
    if not (oid := git.commit(full)) or is_checked_out(git, full):
        return False
    stage = _staged(common, workspace)
    git.run("read-tree", oid, env={"GIT_INDEX_FILE": str(stage / "index")}, timeout_s=1800.0)
    admin.parent.mkdir(exist_ok=True)
    stage.rename(admin)
    sync(admin.parent)
    return True


def _staged(common: Path, workspace: Workspace) -> Path:
    """Build the admin directory of a worktree under a temporary name (gitrepository-layout(5)), and
    return its path. The caller renames it."""
    stage = common / f"perdure-{workspace.id}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    for name, text in (
        ("HEAD", f"ref: refs/heads/{workspace.branch}"),
        ("gitdir", f"{workspace.path}/.git"),
        ("commondir", "../.."),
        # This file makes `git worktree prune` keep the entry while the worktree's volume is not
        # mounted.
        ("locked", LOCKED),
    ):
        write(stage / name, f"{text}\n")
    return stage


def _require_own_worktree(path: Path, workspace: Workspace) -> None:
    """Raise WorkspaceError if there are files at the path that perdure did not make. Such files
    have neither a mark file nor a link to the repository. They are kept."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise WorkspaceError(
            f"{path} has files, but is no longer a worktree of {workspace.repo}. Nothing was "
            f"changed.",
            f"Try: git -C {workspace.repo} worktree repair {path}. Or move the directory away and "
            "try again.",
        )


def _discard(places: Places, workspace_id: str, leftover: Path, label: str) -> Path | None:
    """Move the remains of an earlier creation into the trash, so that a new workdir does not begin
    with them. Return their new path; None if there were none, or only an empty directory."""
    if not os.path.lexists(leftover):
        return None
    from perdure.workspace.trash import discard

    return discard(places, workspace_id, leftover, label)


def _recover(
    places: Places, workspace: Workspace, git: Git, common: Path, cut_off: bool
) -> list[str] | None:
    """Remove what an earlier creation of the workdir left, and return notes for a person. Return
    None if the earlier creation was interrupted but turns out to be complete."""
    path = Path(workspace.path)
    if cut_off and _is_whole(git, path, workspace):
        return None
    notes = []
    for admin in admin_directories(common, path):
        notes += _save_head(git, admin, workspace)
        if moved := _discard(places, workspace.id, admin, "admin"):
            notes.append(f"git's record of an earlier worktree was kept in {moved}.")
    if moved := _discard(places, workspace.id, path, "worktree"):
        notes.append(f"A half-made worktree was moved to {moved}.")
    if cut_off:
        (common / "refs/heads" / f"{workspace.branch}.lock").unlink(missing_ok=True)
    return notes


def _is_whole(git: Git, path: Path, workspace: Workspace) -> bool:
    admin = git_directory(path)
    if admin is None or not (admin / "index").exists() or (admin / "index.lock").exists():
        return False
    try:
        status = git.at(path, path / ".git", path).status()
    except GitFailed:
        return False
    return status.branch == workspace.branch and not status.changed and not status.untracked


def admin_directories(common: Path, path: Path) -> list[Path]:
    """Return the admin directories that belong to the workdir `path`. A kill can leave an admin
    directory without a `gitdir` file; it is recognized by its name."""
    if not (common / "worktrees").is_dir():
        return []
    found = []
    for admin in (common / "worktrees").iterdir():
        target = _workdir_of_admin(admin)
        if target == path / ".git" or (target is None and admin.name == path.name):
            found.append(admin)
    return found


def _save_head(git: Git, admin: Path, workspace: Workspace) -> list[str]:
    """Save the commits of a detached HEAD under a rescue ref, and return notes. Without the admin
    directory, no other ref might reach these commits."""
    head = read(admin / "HEAD").strip()
    oid = git.commit(head) if head and not head.startswith("ref:") else ""
    if (
        not oid
        or git.run(
            "for-each-ref",
            "--count=1",
            f"--contains={oid}",
            "--",
            "refs/heads",
            "refs/remotes",
            "refs/tags",
        ).stdout
    ):
        return []
    ref = f"refs/perdure/rescue/{workspace.id}/{time.time_ns()}"
    git.set_ref(ref, oid, "perdure: HEAD of a worktree that was gone")
    return [f"Its commits were kept as {ref}."]


def _create(places: Places, workspace: Workspace, git: Git, path: Path, notes: list[str]) -> None:
    full = f"refs/heads/{workspace.branch}"
    start = check_branch_free(git, workspace.branch, path)
    make_private(path.parent)
    common = common_directory(workspace.repo)
    admin = common / "worktrees" / path.name
    if on_disk.has_usual_worktrees(common) and not os.path.lexists(admin):
        if not start:
            _begin_branch(workspace, git, full)
        _register_worktree(places, workspace, git, common, admin, start or workspace.base)
    else:
        _create_by_git(workspace, git, path, start)
    if start:
        notes.append(f"The branch {workspace.branch} existed already and is used as it is.")


def _begin_branch(workspace: Workspace, git: Git, full: str) -> None:
    try:
        git.set_ref(full, workspace.base, "perdure: new branch", new=True)
    except GitFailed as error:
        if git.commit(workspace.base):
            raise
        raise _missing_error(workspace) from error


def _register_worktree(
    places: Places, workspace: Workspace, git: Git, common: Path, admin: Path, commit: str
) -> None:
    """Register the worktree as `git worktree add --no-checkout` does, without starting the three
    processes that git starts. The worktree is empty, or has the files of a spare checkout.
    `commit`: the commit at which the work begins."""
    path = Path(workspace.path)
    stage = _staged(common, workspace)
    admin.parent.mkdir(exist_ok=True)
    stage.rename(admin)
    sync(admin.parent)
    if not _take_spare(places, workspace.repo, git, common, commit, path, admin / "index"):
        path.mkdir()
    write(path / ".git", f"gitdir: {admin}\n")
    sync(path.parent)


def _take_spare(
    places: Places, repo: str, git: Git, common: Path, commit: str, path: Path, index: Path
) -> bool:
    if not places.spares.is_dir():
        return False
    from perdure.workspace import spares

    return spares.take(places, identify("repository", repo), git, common, commit, path, index)


def _create_by_git(workspace: Workspace, git: Git, path: Path, start: str) -> None:
    """Register the worktree through git, for a repository with per-worktree settings, sparse
    checkout or an unusual format."""
    full = f"refs/heads/{workspace.branch}"
    oid = start or git.commit(workspace.base)
    if not oid:
        raise _missing_error(workspace)
    words = ("--detach", "--no-checkout", "--lock", "--reason", LOCKED, "--", str(path), oid)
    git.run("worktree", "add", *words, timeout_s=1800.0)
    sync(path.parent)
    if not start:
        _begin_branch(workspace, git, full)
    git.at(path, path / ".git", path).run(
        "symbolic-ref", "-m", "perdure: new worktree", "HEAD", full
    )


def _missing_error(workspace: Workspace) -> WorkspaceError:
    return WorkspaceError(
        f"The commit {workspace.base} is no longer in {workspace.repo}.", "Choose another --base."
    )
