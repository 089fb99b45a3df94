"""Commits changes that an agent left uncommitted, and merges another workdir's commit. Plans use it
to combine the work of several tasks.

Both operations use perdure's own git directory (see `view`) and only trees and objects: no hook,
filter, merge driver or setting of the repository is used.

A merge moves HEAD even with conflicts. Where both sides changed the same lines, the merge commit
contains the files with conflict markers. Each side is complete in its parent commit, and the caller
informs the agent. Files are put in place as by `apply`. After a kill at any point, the operation
can be repeated; completed steps are not repeated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from perdure.errors import Conflict, UsageError, WorkspaceError
from perdure.host.git import Git
from perdure.model import Workspace
from perdure.workspace.changes import ComparisonRepository, comparison_repository
from perdure.workspace.identity import Places
from perdure.workspace.merge.apply import (
    STAGE,
    Message,
    commit_of,
    differing,
    placed,
    planned,
    publish,
    reason_of,
    staged,
)
from perdure.workspace.trash import discard
from perdure.workspace.view import Looker, again, looking_alone, seen

MERGES_LOOKED_AT = 100


class Joined(Struct, frozen=True, kw_only=True):
    """The result of a merge: the new HEAD, and the files with conflicts, each with the reason."""

    commit: str
    conflicts: tuple[tuple[str, str], ...] = ()


def commit(places: Places, workspace: Workspace, git: Git, message: Message) -> str:
    """Commit everything that is not committed, except ignored files; return HEAD. The caller holds
    the workdir's lock.

    Raises UsageError without git, Conflict while a merge or rebase is in progress, WorkspaceError.
    """

    def look() -> str:
        with looking_alone(places, workspace, git) as looker:
            ready = _ready(looker, workspace)
            head = _commit(places, ready, message)
            _bring_along(ready, workspace.branch, head)
            return head

    return again(places, workspace, look, alone=True)


def merge(places: Places, workspace: Workspace, git: Git, other: str, message: Message) -> Joined:
    """Merge a commit of the same repository into HEAD. Uncommitted changes are committed first. The
    caller holds the lock. Raises the errors of `commit`, and WorkspaceError where a merged file
    cannot be put in place."""

    def look() -> Joined:
        with looking_alone(places, workspace, git) as looker:
            return _merge(places, workspace, _ready(looker, workspace), other, message)

    left = list(Path(workspace.path).glob(f"{STAGE}*"))
    if not left:
        commit(places, workspace, git, message)
    joined = again(places, workspace, look, alone=True)
    # Remains of a merge that was killed while it put files in place. All their content is in
    # commits.
    for number, stage in enumerate(left):
        discard(places, f"{workspace.id}-{time.time_ns()}", stage, f"merge-{number}")
    return joined


def changed(
    places: Places, workspace: Workspace, git: Git, began: str, head: str, most: int
) -> tuple[str, ...]:
    """Return the names of at most `most` files that differ between two commits. Compares trees
    only. Raises GitFailed."""

    def look() -> bytes:
        with seen(places, workspace, git) as looker:
            if looker is None:
                return b""
            return looker.eye.run(
                "diff-tree", "-r", "-z", "--name-only", "--no-renames", began, head
            ).stdout

    names = again(places, workspace, look)
    return tuple(os.fsdecode(name) for name in names.split(b"\0")[:most] if name)


def _ready(looker: Looker | None, workspace: Workspace) -> Looker:
    if looker is None:
        raise UsageError(
            f"{workspace.path} is not in a git repository.",
            "A plan needs one: git init, and a first commit.",
        )
    if looker.in_progress:
        raise Conflict(
            f"A {looker.in_progress} is in progress in {workspace.path}.",
            "End it there, then try again.",
        )
    return looker


def _commit(places: Places, looker: Looker, message: Message) -> str:
    with comparison_repository(places, looker) as made:
        tree = made.photograph(looker)
        before, after = made.entries(f"{looker.head}^{{tree}}"), made.entries(tree)
        changed = dict(differing(before, after))
        if not changed:
            return looker.head
        oid = commit_of(made, looker, tree, message)
        publish(
            made,
            looker,
            oid,
            _touched(before, changed | {name: after.get(name) for name in staged(looker)}),
        )
        return oid


def _bring_along(looker: Looker, branch: str, head: str) -> None:
    """Move the workdir's branch forward to HEAD, because the result of the task is read from that
    branch. The agent may have switched to another branch or to a detached HEAD.

    The branch is only fast-forwarded, and never while it is checked out anywhere. Otherwise it is
    not moved.
    """
    git, full = looker.repository, f"refs/heads/{branch}"
    if (
        not branch
        or looker.branch == branch
        or any(worktree.branch == full for worktree in git.worktrees())
    ):
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


def _touched(
    before: Mapping[str, tuple[str, str]], after: Mapping[str, tuple[str, str] | None]
) -> dict[str, tuple[_Side, _Side]]:
    return {name: (before.get(name), new) for name, new in after.items()}


_Side = tuple[str, str] | None


def _merge(
    places: Places, workspace: Workspace, looker: Looker, other: str, message: Message
) -> Joined:
    with comparison_repository(places, looker) as made:
        if not made.run("merge-base", "--is-ancestor", other, looker.head, good=(0, 1)).code:
            return Joined(commit=looker.head, conflicts=_conflicts_of(made, looker.head, other))
        tree, conflicts = _merged(made, looker.head, other)
        before, after = made.entries(f"{looker.head}^{{tree}}"), made.entries(tree)
        steps = planned(made, looker, before, after)
        if steps.refused:
            told = "; ".join(f"{name}: {reason}" for name, reason in steps.refused[:10])
            raise WorkspaceError(
                f"The merge into {workspace.path} cannot be applied: {told}",
                "Move those files away, then try again.",
            )
        oid = commit_of(made, looker, tree, message, other)
        with placed(made, looker, tree, steps):
            publish(made, looker, oid, _touched(before, dict(differing(before, after))))
        return Joined(commit=oid, conflicts=conflicts)


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
        f"--max-count={MERGES_LOOKED_AT}",
        head,
    ).text
    for line in told.splitlines():
        _, ours, *merged = line.split()
        if merged == [other]:
            return _merged(made, ours, other)[1]
    return ()
