"""Isolated clones of one repository: files and commits are copied from one clone to another.
tests/safety/test_clones.py tests what must not be copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import NotFound
from perdure.model import Workspace
from tests.workspace.test_photograph import made
from tests.workspace.yard import Yard


def clones(yard: Yard) -> tuple[Workspace, Path, Workspace, Path]:
    """Make a clone with a commit of its own, and a second one without."""
    source, top = made(yard, "isolated", branch="one")
    (top / "theirs").write_text("theirs\n")
    yard.git("add", "theirs", cwd=top)
    yard.git("commit", "-qm", "theirs", cwd=top)
    target, place = made(yard, "isolated", branch="two")
    return source, top, target, place


def test_a_clone_is_carried_into_another(yard: Yard) -> None:
    """Commits, staged and uncommitted files of one clone are copied into another, on that clone's
    own branch. The source is unchanged. The user's repository and the cache get none of it."""
    source, top, target, place = clones(yard)
    (top / "README").write_text("changed\n")
    (top / "staged").write_text("staged\n")
    yard.git("add", "staged", cwd=top)
    head, status = (
        yard.git("rev-parse", "HEAD", cwd=top),
        yard.git("status", "--porcelain", cwd=top),
    )
    restored = yard.workspaces.checkpoints.copy_state(source, target)
    assert restored.differs == ()
    for here in (top, place):
        assert (
            yard.git("rev-parse", "HEAD", cwd=here),
            yard.git("status", "--porcelain", cwd=here),
        ) == (head, status)
        yard.git("fsck", "--no-dangling", "--no-progress", cwd=here)
    assert yard.git("branch", "--show-current", cwd=place) == "two"
    (cache,) = (yard.root / ".perdure/repos").iterdir()
    for elsewhere in (yard.repo, cache):
        assert "fatal" in yard.complaint("cat-file", "-p", head, cwd=elsewhere)


def test_commits_of_clones_are_merged(yard: Yard) -> None:
    """A commit of one clone is fetched into another and merged there, even if this is requested
    several times. Both histories are complete."""
    source, _, target, place = clones(yard)
    (place / "ours").write_text("ours\n")
    theirs = yard.workspaces.commit(source, "claude", "Theirs")
    for _ in range(2):
        yard.workspaces.checkpoints.copy_commit(source, target, theirs)
        joined = yard.workspaces.merge(target, "claude", theirs, "Merge one")
        assert joined.conflicts == ()
    assert (place / "theirs").read_text() == "theirs\n" and (place / "ours").exists()
    assert yard.git("log", "-1", "--format=%P", cwd=place).split()[-1] == theirs
    assert yard.workspaces.changed(target, theirs, joined.commit, 9) == ("ours",)
    yard.git("fsck", "--no-dangling", "--no-progress", cwd=place)
    with pytest.raises(NotFound, match="is not in"):
        yard.workspaces.checkpoints.copy_commit(source, target, "1" * 40)


def test_a_branch_of_the_repository_is_known(yard: Yard) -> None:
    """The branches of a clone's repository are those of the last fetch. Before any fetch no branch
    is known."""
    assert yard.workspaces.existing_branches(yard.plan("isolated", branch="one"), ["main"]) == []
    source, *_ = clones(yard)
    assert yard.workspaces.existing_branches(source, ["main", "one", "nothing"]) == ["main"]
    assert yard.workspaces.resolve(source) == yard.git("rev-parse", "main")
