"""Branches, tags and stashes of an agent's own repository, and workdirs whose git directory is
unusable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from perdure.model import TaskSpec
from perdure.workspace import Workspaces
from tests.workspace.test_photograph import made, marks
from tests.workspace.yard import Yard


def branch_out(yard: Yard, top: Path) -> str:
    """Make a second branch with a commit, a tag on a third commit that no branch has, and two
    stashes. Return what git reports about them."""
    yard.git("checkout", "-q", "-b", "side/idea", cwd=top)
    (top / "idea").write_text("an idea\n")
    yard.git("add", "idea", cwd=top)
    yard.git("commit", "-qm", "an idea", cwd=top)
    yard.git("commit", "-q", "--allow-empty", "-m", "tagged", cwd=top)
    yard.git("tag", "-a", "-m", "a mark", "marked", cwd=top)
    yard.git("reset", "-q", "--hard", "HEAD~1", cwd=top)
    yard.git("checkout", "-q", "work", cwd=top)
    for text in ("first", "second"):
        (top / "README").write_text(f"stashed {text}\n")
        yard.git("stash", "push", "-q", "-m", text, cwd=top)
    return said(yard, top)


def said(yard: Yard, top: Path) -> str:
    """Return the branches and stashes, and the commit that the tag names."""
    branches = yard.git("for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", cwd=top)
    stashes = yard.git("stash", "list", "--format=%H %gs", cwd=top, check=False)
    return "\n".join(
        [branches, stashes, yard.git("rev-parse", "marked^{commit}", cwd=top, check=False)]
    )


def forget(yard: Yard, top: Path) -> None:
    """Delete the stash, the branch and the tag, and prune their objects immediately."""
    yard.git("stash", "clear", cwd=top)
    yard.git("branch", "-qD", "side/idea", cwd=top)
    yard.git("tag", "-d", "marked", cwd=top)
    yard.git("reflog", "expire", "--expire=now", "--all", cwd=top)
    yard.git("gc", "--quiet", "--prune=now", cwd=top)


def test_branches_and_stashes_of_an_isolated_workdir(yard: Yard) -> None:
    """Branches and stashes of an isolated workdir are restored with their commits, even if they
    were deleted and pruned. A second save of the same state is the same commit."""
    workspace, top = made(yard, "isolated")
    first = yard.workspaces.checkpoints.save(workspace, 1)
    before = branch_out(yard, top)
    saved = yard.workspaces.checkpoints.save(workspace, 2)
    assert first.commit != saved.commit == yard.workspaces.checkpoints.save(workspace, 3).commit
    forget(yard, top)
    assert yard.workspaces.checkpoints.restore(workspace, saved.commit).notes == ()
    assert said(yard, top) == before
    assert yard.git("show", "side/idea:idea", cwd=top) == "an idea"
    yard.git("stash", "pop", "-q", cwd=top)
    assert (top / "README").read_text() == "stashed second\n"


def test_a_restore_goes_on_after_the_git_of_another_one_was_killed(yard: Yard) -> None:
    """git was killed during an earlier restore. Its lock files beside a branch, a tag and the stash
    do not stop the next restore."""
    workspace, top = made(yard, "isolated")
    before = branch_out(yard, top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    forget(yard, top)
    for name in ("heads/side/idea", "tags/marked", "stash"):
        lock = top / f".git/refs/{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    notes = yard.workspaces.checkpoints.restore(workspace, saved.commit).notes
    assert [note for note in notes if "lock" not in note] == []
    assert said(yard, top) == before


def test_a_branch_that_is_there_is_never_moved(yard: Yard) -> None:
    """A branch that has diverged since, and stashes that were added, are not changed by a restore.
    The commits of the checkpoint are kept under rescue refs."""
    workspace, top = made(yard, "isolated")
    branch_out(yard, top)
    was = yard.git("rev-parse", "side/idea", "stash@{0}", cwd=top).split()
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    forget(yard, top)
    yard.git("branch", "side/idea", "work", cwd=top)
    (top / "README").write_text("another\n")
    yard.git("stash", "push", "-q", cwd=top)
    restored = yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert len(restored.notes) == 2
    assert yard.git("rev-parse", "side/idea", cwd=top) == yard.git("rev-parse", "work", cwd=top)
    assert len(yard.git("stash", "list", cwd=top).split("\n")) == 1
    for oid in was:
        assert oid in yard.git(
            "for-each-ref", "--format=%(objectname)", "refs/perdure/rescue", cwd=top
        )


def test_branches_travel(yard: Yard, tmp_path: Path) -> None:
    """If a checkpoint is unpacked in an empty directory elsewhere, the repository there has the
    same branches and stashes."""
    workspace, top = made(yard, "isolated")
    before = branch_out(yard, top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    other = Workspaces(tmp_path / "other", environ=yard.environ)
    (tmp_path / "landed").mkdir()
    there = other.plan(TaskSpec(prompt="p", here=str(tmp_path / "landed")), "brave-otter", tmp_path)
    with yard.workspaces.checkpoints.pack(workspace, saved.commit) as packed:
        other.checkpoints.unpack(there, packed.file, packed.facts)
    restored = other.checkpoints.restore(there, packed.facts.commit)
    assert (restored.differs, restored.notes) == ((), ())
    assert said(yard, tmp_path / "landed") == before


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
@pytest.mark.parametrize("damage", ["gone", "HEAD", "a file", "index", "objects"])
def test_files_are_saved_without_a_git_directory(yard: Yard, backend: str, damage: str) -> None:
    """If the git directory is missing or broken, only the files are saved and restored. The
    checkpoint says what is missing."""
    workspace, top = made(yard, backend)
    yard.git("commit", "-q", "--allow-empty", "-m", "the agent's", cwd=top)
    (top / "README").write_text("precious\n")
    (top / "new").write_text("new\n")
    yard.git("add", "new", cwd=top)
    whole = yard.workspaces.checkpoints.save(workspace, 1)
    files = marks(top)
    admin = Path(yard.git("rev-parse", "--absolute-git-dir", cwd=top))
    match damage:
        case "gone" | "a file":
            shutil.rmtree(admin)
            (top / ".git").unlink(missing_ok=True)
            if damage == "a file":
                (top / ".git").write_text("nonsense\n")
        case "HEAD":
            (admin / "HEAD").write_text("nonsense\n")
        case "index":
            (admin / "index").write_bytes(b"DIRC nonsense")
        case "objects":
            head = yard.git("rev-parse", "HEAD", cwd=top)
            common = Path(
                yard.git("rev-parse", "--path-format=absolute", "--git-common-dir", cwd=top)
            )
            (common / "objects" / head[:2] / head[2:]).unlink()
    (top / "later").write_text("later\n")
    saved = yard.workspaces.checkpoints.save(workspace, 2)
    if (backend, damage) != (
        "isolated",
        "objects",
    ):  # In this case the checkpoint repository has the commit, so nothing is missing.
        assert [name for name, _ in saved.left_out] == [".git"]
    (top / "README").unlink()
    (top / "new").write_text("other\n")
    restored = yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert marks(top) == files | {"later": ("file", b"later\n")}
    assert restored.differs == ()
    if damage != "objects" or backend == "isolated":
        yard.workspaces.checkpoints.restore(workspace, whole.commit)
        assert marks(top) == files
