"""Root and repository on different file systems: everything works as on one file system."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from perdure.model import Workspace
from perdure.workspace import Workspaces
from tests.workspace.test_photograph import fill, marks
from tests.workspace.yard import Yard


def made(yard: Yard, workspaces: Workspaces, backend: str, **more: str) -> tuple[Workspace, Path]:
    workspace = workspaces.plan(yard.spec(backend, **more), "brave-otter", yard.repo)
    workspaces.prepare(workspace, "claude")
    return workspace, Path(workspace.path)


@pytest.mark.parametrize("backend", ["worktree", "isolated", "here", "task"])
def test_a_checkpoint_is_saved_and_restored(yard: Yard, elsewhere: Path, backend: str) -> None:
    """The root is on another file system than the repository. Two checkpoints are saved, and the
    second is restored byte by byte. The repository passes its own check, and nothing is left in it.
    """
    workspaces = Workspaces(elsewhere / "root", environ=yard.environ)
    workspace, top = made(yard, workspaces, backend)
    (top / "README").write_text("before\n")
    first = workspaces.checkpoints.save(workspace, 1)
    fill(yard, top)
    second = workspaces.checkpoints.save(workspace, 2)
    wanted = marks(top)
    (top / "README").write_text("after\n")
    (top / "new.txt").unlink()
    restored = workspaces.checkpoints.restore(workspace, second.commit)
    assert marks(top) == wanted and restored.differs == ()
    assert first.commit != second.commit and workspaces.checkpoints.list_saved(workspace) == {
        1: first.commit,
        2: second.commit,
    }
    yard.git("fsck", "--no-dangling", "--no-progress")
    objects = yard.repo / ".git/objects"
    assert not [
        *objects.glob("incoming-*"),
        *objects.glob("pack/*.keep"),
        *objects.glob("pack/tmp_*"),
    ]


def test_a_lost_worktree_is_made_again(yard: Yard, elsewhere: Path) -> None:
    """git's records of a lost worktree are moved to the root's trash on another file system, even
    if they contain a pipe and a link."""
    workspaces = Workspaces(elsewhere / "root", environ=yard.environ)
    workspace, top = made(yard, workspaces, "worktree")
    (admin,) = (yard.repo / ".git/worktrees").iterdir()
    os.mkfifo(admin / "pipe")
    (admin / "link").symlink_to("nowhere")
    shutil.rmtree(top)
    workspaces.prepare(workspace, "claude")
    assert (top / "README").read_text() == "second\n" and yard.git(
        "status", "--porcelain", cwd=top
    ) == ""
    assert (
        len(list(workspaces.trash.glob("*/admin/pipe")))
        == len(list(workspaces.trash.glob("*/admin/HEAD")))
        == 1
    )


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_a_workdir_grows_from_a_checkpoint(yard: Yard, elsewhere: Path, backend: str) -> None:
    """Across file systems, a second workdir is made from a checkpoint of the first one, and a
    checkpoint is exported as a pack."""
    workspaces = Workspaces(elsewhere / "root", environ=yard.environ)
    workspace, top = made(yard, workspaces, backend)
    (top / "README").write_text("theirs\n")
    saved = workspaces.checkpoints.save(workspace, 1)
    other, place = made(yard, workspaces, backend, branch="other")
    workspaces.checkpoints.copy_checkpoint(workspace, saved.commit, other)
    assert (place / "README").read_text() == "theirs\n"
    (place / "README").write_text("ours\n")
    with workspaces.checkpoints.pack(workspace, saved.commit) as packed:
        workspaces.checkpoints.unpack(other, packed.file, packed.facts, 9)
    workspaces.checkpoints.restore(other, saved.commit)
    assert (place / "README").read_text() == "theirs\n"
