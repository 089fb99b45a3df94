"""How far the branch that the work in a workdir began at has gone on since. Looks where perdure
fetches to, never into the workdir; what is found there, an isolated workdir can merge by its id, as
it borrows its objects from there.
"""

from __future__ import annotations

from pathlib import Path

from perdure.host.git import Git
from perdure.lateclass import dataclass
from perdure.model import Backend, Workspace
from perdure.workspace.clone_cache import find, opened
from perdure.workspace.identity import Places, is_oid
from perdure.workspace.transport import RemoteSource
from perdure.workspace.worktree import common_directory

NAMED = 20
"""So many of the newest commits are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """`commits` of the base came since; it stands at `commit` now. `subjects` are the newest ones'
    first lines: hostile text."""

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
    """What came to the base since a commit (empty: since the work began); None for nothing, and for
    a base that is no branch.

    Raises NotFound where the base is gone, GitFailed where it cannot be fetched.
    """
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
    # Not `git log`, which runs programs that a repository's settings name. A line before each
    # subject names its commit.
    said = repository.run(
        "rev-list", f"--max-count={NAMED}", "--format=%s", f"{since}..{now}"
    ).stdout
    lines = said.decode("utf-8", "replace").split("\n")[1::2]
    return Ahead(
        commit=now, commits=count, subjects=tuple(line[:200] for line in lines if line.strip())
    )


def is_followed(workspace: Workspace) -> bool:
    """Whether there is a branch somewhere that the work is based on."""
    return (
        workspace.backend in (Backend.WORKTREE, Backend.ISOLATED) and Path(workspace.path).is_dir()
    )
