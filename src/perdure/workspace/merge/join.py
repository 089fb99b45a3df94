"""Commits changes that an agent left uncommitted (`commit`), and merges another workdir's commit
(`merge`). Plans use both to combine the work of several tasks. `ahead` finds new commits of the
base branch.

`commit` and `merge` use perdure's own git directory (see `view`) and only trees and objects: no
hook, filter, merge driver or setting of the repository is used.

A merge moves HEAD even with conflicts. Where both sides changed the same lines, the merge commit
contains the files with conflict markers. The two parent commits still have the complete content of
each side. The caller tells the agent which files have conflicts. Files are put in place as `apply`
does it. After a kill at any point, the operation can be repeated; completed steps are not repeated.

`ahead` compares the base branch with the commit at which the work began. It reads the user's
repository, or the cache that perdure fetches into, never the workdir. An isolated workdir borrows
objects from that cache, so it can merge such a commit by its id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perdure.errors import Conflict, UsageError, WorkspaceError
from perdure.host.git import Git
from perdure.model import Backend, Workspace
from perdure.workspace.changes import ComparisonRepository, comparison_repository
from perdure.workspace.identity import Places, is_oid
from perdure.workspace.isolated import open_cache, resolve_base
from perdure.workspace.merge.apply import (
    STAGE,
    Message,
    commit_of,
    differing,
    files_in_place,
    plan_changes,
    publish,
    reason_of,
    staged_paths,
)
from perdure.workspace.transport import RemoteSource
from perdure.workspace.trash import discard
from perdure.workspace.view import (
    WorkdirGit,
    open_through_view,
    open_workdir_git,
    retry_with_new_view,
)
from perdure.workspace.worktree import common_directory, is_checked_out

MAX_MERGES_SEARCHED = 100


class MergedCommit(Struct, frozen=True, kw_only=True):
    """The result of a merge: the new HEAD, and the files with conflicts, each with the reason."""

    commit: str
    conflicts: tuple[tuple[str, str], ...] = ()


def commit(places: Places, workspace: Workspace, git: Git, message: Message) -> str:
    """Commit everything that is not committed, except ignored files; return HEAD. The caller holds
    the workdir's lock.

    Raises UsageError without git, Conflict while a merge or rebase is in progress, WorkspaceError.
    """

    def look() -> str:
        with open_through_view(places, workspace, git) as workdir_git:
            ready = _require_mergeable(workdir_git, workspace)
            head = _commit(places, ready, message)
            _fast_forward_branch(ready, workspace.branch, head)
            return head

    return retry_with_new_view(places, workspace, look, alone=True)


def merge(
    places: Places, workspace: Workspace, git: Git, other: str, message: Message
) -> MergedCommit:
    """Merge a commit of the same repository into HEAD. Uncommitted changes are committed first. The
    caller holds the lock. Raises the errors of `commit`, and WorkspaceError where a merged file
    cannot be put in place."""

    def look() -> MergedCommit:
        with open_through_view(places, workspace, git) as workdir_git:
            return _merge(
                places, workspace, _require_mergeable(workdir_git, workspace), other, message
            )

    left = list(Path(workspace.path).glob(f"{STAGE}*"))
    if not left:
        commit(places, workspace, git, message)
    joined = retry_with_new_view(places, workspace, look, alone=True)
    # Discard the directories that earlier merges left, because they were killed while they put
    # files in place. All content of these directories is in commits.
    for number, stage in enumerate(left):
        discard(places, f"{workspace.id}-{time.time_ns()}", stage, f"merge-{number}")
    return joined


def changed(
    places: Places, workspace: Workspace, git: Git, began: str, head: str, most: int
) -> tuple[str, ...]:
    """Return the names of at most `most` files that differ between two commits. Compares trees
    only. Raises GitFailed."""

    def look() -> bytes:
        with open_workdir_git(places, workspace, git) as workdir_git:
            if workdir_git is None:
                return b""
            return workdir_git.inspector.run(
                "diff-tree", "-r", "-z", "--name-only", "--no-renames", began, head
            ).stdout

    names = retry_with_new_view(places, workspace, look)
    return tuple(os.fsdecode(name) for name in names.split(b"\0")[:most] if name)


def _require_mergeable(workdir_git: WorkdirGit | None, workspace: Workspace) -> WorkdirGit:
    if workdir_git is None:
        raise UsageError(
            f"{workspace.path} is not in a git repository.",
            "A plan needs one: git init, and a first commit.",
        )
    if workdir_git.in_progress:
        raise Conflict(
            f"A {workdir_git.in_progress} is in progress in {workspace.path}.",
            "End it there, then try again.",
        )
    return workdir_git


def _commit(places: Places, workdir_git: WorkdirGit, message: Message) -> str:
    with comparison_repository(places, workdir_git) as made:
        tree = made.write_workdir_tree(workdir_git)
        before, after = made.entries(f"{workdir_git.head}^{{tree}}"), made.entries(tree)
        changed = dict(differing(before, after))
        if not changed:
            return workdir_git.head
        oid = commit_of(made, workdir_git, tree, message)
        for name in staged_paths(workdir_git):
            changed[name] = after.get(name)
        publish(made, workdir_git, oid, _changed_entries(before, changed))
        return oid


def _fast_forward_branch(workdir_git: WorkdirGit, branch: str, head: str) -> None:
    """Move the workdir's branch forward to HEAD if the agent has switched to another branch or to a
    detached HEAD. The result of the task is read from the workdir's branch.

    If that would not be a fast-forward, or if the branch is checked out anywhere, the branch is not
    moved.
    """
    git, full = workdir_git.repository, f"refs/heads/{branch}"
    if not branch or workdir_git.branch == branch or is_checked_out(git, full):
        return
    there = git.commit(full)
    if not there or not git.run("merge-base", "--is-ancestor", there, head, good=(0, 1)).code:
        git.run(
            "update-ref",
            "-m",
            "perdure plan",
            full,
            head,
            there or "0" * len(head),
            good=(0, 1, 128),
        )


def _changed_entries(
    before: Mapping[str, tuple[str, str]], after: Mapping[str, tuple[str, str] | None]
) -> dict[str, tuple[_Side, _Side]]:
    return {name: (before.get(name), new) for name, new in after.items()}


_Side = tuple[str, str] | None


def _merge(
    places: Places, workspace: Workspace, workdir_git: WorkdirGit, other: str, message: Message
) -> MergedCommit:
    with comparison_repository(places, workdir_git) as made:
        if not made.run("merge-base", "--is-ancestor", other, workdir_git.head, good=(0, 1)).code:
            return MergedCommit(
                commit=workdir_git.head, conflicts=_conflicts_of(made, workdir_git.head, other)
            )
        tree, conflicts = _merged(made, workdir_git.head, other)
        before, after = made.entries(f"{workdir_git.head}^{{tree}}"), made.entries(tree)
        steps = plan_changes(made, workdir_git, before, after)
        if steps.refused:
            told = "; ".join(f"{name}: {reason}" for name, reason in steps.refused[:10])
            raise WorkspaceError(
                f"The merge into {workspace.path} cannot be applied: {told}",
                "Move those files away, then try again.",
            )
        oid = commit_of(made, workdir_git, tree, message, other)
        with files_in_place(made, workdir_git, tree, steps):
            publish(
                made, workdir_git, oid, _changed_entries(before, dict(differing(before, after)))
            )
        return MergedCommit(commit=oid, conflicts=conflicts)


def _merged(
    made: ComparisonRepository, ours: str, theirs: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the merged tree, with conflict markers in its files, and the files with conflicts,
    each with the reason."""
    result = made.run(
        "merge-tree", "--write-tree", "--name-only", "-z", "--messages", ours, theirs, good=(0, 1)
    )
    tree, *rest = os.fsdecode(result.stdout).split("\0")
    if result.code == 0:
        return tree, ()
    names = rest[: rest.index("")]
    messages = rest[len(names) + 1 :]
    return tree, tuple((name, reason_of(name, messages)) for name in dict.fromkeys(names))


def _conflicts_of(made: ComparisonRepository, head: str, other: str) -> tuple[tuple[str, str], ...]:
    """Return the conflicts of a merge that an earlier process made. That process was killed before
    it could report them."""
    told = made.run(
        "rev-list",
        "--first-parent",
        "--min-parents=2",
        "--parents",
        f"--max-count={MAX_MERGES_SEARCHED}",
        head,
    ).text
    for line in told.splitlines():
        _, ours, *merged = line.split()
        if merged == [other]:
            return _merged(made, ours, other)[1]
    return ()


NAMED = 20
"""Maximum number of commits whose subjects are returned, newest first."""


class NewBaseCommits(Struct, frozen=True, kw_only=True):
    """The new commits of a base branch: their number, and the `commit` that the branch is at now.
    `subjects` are the first lines of the newest messages, which are untrusted text."""

    commit: str
    commits: int
    subjects: tuple[str, ...]


def ahead(
    places: Places,
    workspace: Workspace,
    source: RemoteSource | None,
    git: Git,
    base: str,
    since: str,
) -> NewBaseCommits | None:
    """Return the new commits of the base branch since the commit `since` (empty: since the work
    began). None if there are none, or if `base` is a commit and not a branch. Raises NotFound where
    the branch is gone, GitFailed where it cannot be fetched."""
    if is_oid(base):
        return None
    if source is None:
        common = common_directory(workspace.repo)
        repository = git.at(common, common)
        return _counted(
            repository,
            since or workspace.base,
            repository.commit(f"refs/heads/{base}") if base else "",
        )
    with open_cache(places, source, git) as (cache, fault):
        if fault is not None:
            raise fault
        began = since or cache.ref(f"refs/perdure/pin/{workspace.id}")
        now = cache.ref(f"refs/remotes/origin/{base}") if base else ""
        return _counted(cache, began, now or resolve_base(places, source, cache, base, None))


def _counted(repository: Git, since: str, now: str) -> NewBaseCommits | None:
    if not now or not since:
        return None
    new = f"{since}..{now}"
    # `git log` could run programs that a repository's settings name, so rev-list is used. rev-list
    # prints a line with the commit's id before each subject. It fails if `since` was removed.
    said = repository.run(
        "rev-list", f"--max-count={NAMED + 1}", "--format=%s", new, "--", good=(0, 128)
    )
    subjects = said.stdout.decode("utf-8", "replace").split("\n")[1::2]
    if said.code or not subjects:
        return None
    count = len(subjects)
    if count > NAMED:
        count = int(repository.run("rev-list", "--count", new, "--").text)
    named = tuple(line[:200] for line in subjects[:NAMED] if line.strip())
    return NewBaseCommits(commit=now, commits=count, subjects=named)


def is_followed(workspace: Workspace) -> bool:
    """Return whether new commits on the base branch can be looked up. This requires a backend with
    a repository (`worktree` or `isolated`) and an existing workdir."""
    return (
        workspace.backend in (Backend.WORKTREE, Backend.ISOLATED) and Path(workspace.path).is_dir()
    )
