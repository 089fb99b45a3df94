"""How far the base branch of a workdir has advanced since the work began. Reads the repository that
perdure fetches into, never the workdir. An isolated workdir can merge a commit found there by its
id, because it borrows its objects from there."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from perdure.host.git import Git
from perdure.model import Backend, Workspace
from perdure.workspace.clone_cache import find, opened
from perdure.workspace.identity import Places, is_oid
from perdure.workspace.transport import RemoteSource
from perdure.workspace.worktree import common_directory

NAMED = 20
"""Maximum number of commits that are named, newest first."""


class Ahead(Struct, frozen=True, kw_only=True):
    """New commits of the base: their number, and the `commit` that it is at now. `subjects` are the
    first lines of the newest ones: untrusted text."""

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
) -> Ahead | None:
    """Return the new commits of the base since a commit (empty: since the work began). None if
    there are none, and for a base that is no branch. Raises NotFound where the base is gone,
    GitFailed where it cannot be fetched."""
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
    with opened(places, source, git) as (cache, fault):
        if fault is not None:
            raise fault
        began = since or cache.commit(f"refs/perdure/pin/{workspace.id}")
        return _counted(cache, began, find(places, source, cache, base, None))


def _counted(repository: Git, since: str, now: str) -> Ahead | None:
    if not now or not since or not repository.commit(since):
        return None
    count = int(repository.run("rev-list", "--count", f"{since}..{now}").text)
    if not count:
        return None
    # Not `git log`, which runs programs named in a repository's settings. rev-list prints a line
    # with the commit before each subject.
    said = repository.run(
        "rev-list", f"--max-count={NAMED}", "--format=%s", f"{since}..{now}"
    ).stdout
    lines = said.decode("utf-8", "replace").split("\n")[1::2]
    return Ahead(
        commit=now, commits=count, subjects=tuple(line[:200] for line in lines if line.strip())
    )


def is_followed(workspace: Workspace) -> bool:
    """Return whether the work may be based on a branch: it has a repository, and its workdir
    exists."""
    return (
        workspace.backend in (Backend.WORKTREE, Backend.ISOLATED) and Path(workspace.path).is_dir()
    )
