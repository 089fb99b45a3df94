"""Finds the commits that were added to a workdir's base branch since the work began. Reads the
repository that perdure fetches into, never the workdir. An isolated workdir borrows its objects
from that repository, so it can merge such a commit by its id."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from perdure.host.git import Git
from perdure.model import Backend, Workspace
from perdure.workspace.clone_cache import open_cache, resolve_base
from perdure.workspace.identity import Places, is_oid
from perdure.workspace.transport import RemoteSource
from perdure.workspace.worktree import common_directory

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
        began = since or cache.commit(f"refs/perdure/pin/{workspace.id}")
        return _counted(cache, began, resolve_base(places, source, cache, base, None))


def _counted(repository: Git, since: str, now: str) -> NewBaseCommits | None:
    if not now or not since or not repository.commit(since):
        return None
    count = int(repository.run("rev-list", "--count", f"{since}..{now}").text)
    if not count:
        return None
    # `git log` could run programs that a repository's settings name, so rev-list is used. rev-list
    # prints a line with the commit's id before each subject.
    said = repository.run(
        "rev-list", f"--max-count={NAMED}", "--format=%s", f"{since}..{now}"
    ).stdout
    lines = said.decode("utf-8", "replace").split("\n")[1::2]
    return NewBaseCommits(
        commit=now, commits=count, subjects=tuple(line[:200] for line in lines if line.strip())
    )


def is_followed(workspace: Workspace) -> bool:
    """Return whether new commits on the base branch can be looked up. This requires a backend with
    a repository (`worktree` or `isolated`) and an existing workdir."""
    return (
        workspace.backend in (Backend.WORKTREE, Backend.ISOLATED) and Path(workspace.path).is_dir()
    )
