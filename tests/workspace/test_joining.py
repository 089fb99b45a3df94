"""Commits of work that an agent left uncommitted, and merges of workdirs, in real repositories that
contain everything that could run a program."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from perdure.errors import Conflict, NotFound, WorkspaceError
from perdure.model import Workspace
from perdure.workspace import AttemptBaseline
from tests.workspace.yard import Yard


def placed(yard: Yard, branch: str, **files: str) -> tuple[Workspace, Path]:
    """Make a worktree on a branch, with these files changed in it."""
    place = yard.plan("worktree", branch=branch)
    yard.workspaces.prepare(place, "claude")
    top = Path(place.path)
    for name, text in files.items():
        (top / name).write_text(text)
    return place, top


def status(yard: Yard, top: Path) -> str:
    return yard.git("status", "--porcelain", cwd=top)


def test_everything_that_was_left_is_committed(yard: Yard) -> None:
    """Changed, new, deleted and staged files, modes and links are put into one commit by the agent.
    Afterwards git reports a clean workdir. Ignored files are left out. Without changes there is no
    commit."""
    place, top = placed(yard, "work", README="changed\n", new="new\n", staged="staged\n")
    (top / "noise.log").write_text("ignored")
    (top / "src/file1.txt").unlink()
    (top / "src/file2.txt").chmod(0o755)
    (top / "link").symlink_to("/nonexistent")
    yard.git("add", "staged", "src/file1.txt", cwd=top)
    (top / "staged").unlink()
    before = yard.git("rev-parse", "HEAD", cwd=top)
    head = yard.workspaces.commit(place, "claude", "What was left")
    assert head == yard.git("rev-parse", "work") != before
    assert (
        yard.git("log", "-1", "--format=%an|%cn|%s|%P", cwd=top)
        == f"claude (perdure)|Una User|What was left|{before}"
    )
    changed = yard.git("diff", "--name-status", before, head).split()
    assert changed == [
        "M",
        "README",
        "A",
        "link",
        "A",
        "new",
        "D",
        "src/file1.txt",
        "M",
        "src/file2.txt",
    ]
    assert status(yard, top) == ""
    assert yard.workspaces.commit(place, "claude", "Nothing") == head


def test_files_outside_a_sparse_checkout_are_not_deleted(yard: Yard) -> None:
    """git copies the sparse patterns into a new worktree, so some files are absent there. They are
    neither committed as deleted nor reported as such. A file that the agent deleted is."""
    (yard.repo / "docs").mkdir()
    (yard.repo / "docs/a.txt").write_text("a\n")
    yard.git("add", ".")
    yard.git("commit", "-qm", "docs")
    yard.git("sparse-checkout", "set", "src")
    place, top = placed(yard, "work")
    assert not (top / "docs").exists() and (top / "src/file1.txt").exists()
    head = yard.git("rev-parse", "HEAD", cwd=top)
    workspaces = yard.workspaces
    saved, seen = workspaces.checkpoints.save_last(place, 1, AttemptBaseline(head=head))
    assert (saved.changed, saved.untracked, seen and seen.files) == (0, 0, ())
    assert workspaces.commit(place, "claude", "Nothing") == head
    assert workspaces.diff(place) == b""
    (top / "src/file1.txt").unlink()
    after = workspaces.commit(place, "claude", "Deleted")
    assert yard.git("diff", "--name-status", head, after) == "D\tsrc/file1.txt"
    assert status(yard, top) == ""


def test_a_merge_brings_files_from_outside_a_sparse_checkout(yard: Yard) -> None:
    """A merged change of a file that a sparse checkout left out is in the commit. The workdir gets
    the file, and is clean."""
    (yard.repo / "docs").mkdir()
    for name in ("a", "b", "c"):
        (yard.repo / f"docs/{name}.txt").write_text("1\n")
    yard.git("add", ".")
    yard.git("commit", "-qm", "docs")
    yard.git("checkout", "-qb", "other")
    (yard.repo / "docs/a.txt").write_text("2\n")
    (yard.repo / "docs/b.txt").unlink()
    yard.git("commit", "-qam", "other")
    other = yard.git("rev-parse", "HEAD")
    yard.git("checkout", "-q", "main")
    yard.git("sparse-checkout", "set", "src")
    place, top = placed(yard, "work", **{"src/file1.txt": "mine\n"})
    yard.workspaces.merge(place, "claude", other, "Merged")
    assert yard.git("diff", "--name-status", "main", "work").split() == [
        *("M", "docs/a.txt"),
        *("D", "docs/b.txt"),
        *("M", "src/file1.txt"),
    ]
    assert (top / "docs/a.txt").read_text() == "2\n" and status(yard, top) == ""


@pytest.mark.parametrize(
    "left", ["checkout -q -b feature", "checkout -q --detach", "branch -q -m feature"]
)
def test_the_workdirs_branch_follows_the_agent(yard: Yard, left: str) -> None:
    """If the agent committed on another branch, the workdir's own branch gets these commits, too.
    If the agent began elsewhere in the history, no branch is moved."""
    place, top = placed(yard, "work", README="changed\n")
    yard.git(*left.split(), cwd=top)
    (top / "new").write_text("new\n")
    head = yard.workspaces.commit(place, "claude", "What was left")
    assert yard.git("rev-parse", "work") == head == yard.git("rev-parse", "HEAD", cwd=top)
    yard.git("checkout", "-q", "-b", "elsewhere", "main", cwd=top)
    (top / "other").write_text("other\n")
    assert (
        yard.workspaces.commit(place, "claude", "Elsewhere")
        != head
        == yard.git("rev-parse", "work")
    )


def test_branches_meet(yard: Yard) -> None:
    """A merge without conflicts adds the other side's files and keeps both histories. A second call
    makes no second merge."""
    other, _ = placed(yard, "other", README="theirs\n", theirs="theirs\n")
    theirs = yard.workspaces.commit(other, "claude", "Theirs")
    place, top = placed(yard, "work", ours="ours\n")
    joined = yard.workspaces.merge(place, "claude", theirs, "Merge other")
    assert joined.conflicts == ()
    assert (
        (top / "README").read_text() == "theirs\n"
        and (top / "theirs").exists()
        and (top / "ours").exists()
    )
    assert yard.git("log", "-1", "--format=%s %P", cwd=top).split()[-1] == theirs
    assert status(yard, top) == ""
    assert yard.workspaces.merge(place, "claude", theirs, "Merge other") == joined


def test_conflicts_are_marked_and_named(yard: Yard) -> None:
    """If both sides changed the same lines, the file gets conflict marks, and the result names the
    reason. The parents of the merge have both sides completely. A second call gives the same
    result."""
    other, their_top = placed(yard, "other", README="theirs\n")
    (their_top / "src/file3.txt").unlink()
    theirs = yard.workspaces.commit(other, "claude", "Theirs")
    place, top = placed(yard, "work", README="ours\n")
    (top / "src/file3.txt").write_text("changed\n")
    joined = yard.workspaces.merge(place, "claude", theirs, "Merge other")
    assert dict(joined.conflicts) == {
        "README": "both changed the same lines",
        "src/file3.txt": "changed on one side, deleted on the other",
    }
    marked = (top / "README").read_text()
    assert marked.startswith("<<<<<<< ") and "ours\n=======\ntheirs\n" in marked
    assert (
        yard.git("show", "HEAD^1:README", cwd=top) == "ours"
        and yard.git("show", "HEAD^2:README", cwd=top) == "theirs"
    )
    assert status(yard, top) == ""
    assert yard.workspaces.merge(place, "claude", theirs, "Merge other") == joined


def test_nothing_of_the_repository_runs(yard: Yard) -> None:
    """Hooks, filters, merge drivers, fsmonitor and signing programs that an agent configured do not
    run during commits and merges."""
    other, _ = placed(
        yard, "other", README="theirs\n", **{".gitattributes": "* filter=evil merge=evil\n"}
    )
    theirs = yard.workspaces.commit(other, "claude", "Theirs")
    place, _ = placed(
        yard, "work", README="ours\n", **{".gitattributes": "* filter=evil merge=evil\n"}
    )
    fired = yard.top / "fired"
    evil = f"touch {fired}; cat"
    for key in (
        "filter.evil.clean",
        "filter.evil.smudge",
        "merge.evil.driver",
        "core.fsmonitor",
        "gpg.program",
        "core.sshCommand",
    ):
        yard.git("config", key, evil)
    yard.git("config", "commit.gpgSign", "true")
    for hook in (
        "pre-commit",
        "commit-msg",
        "post-commit",
        "post-merge",
        "pre-merge-commit",
        "reference-transaction",
        "post-index-change",
    ):
        script = yard.repo / ".git/hooks" / hook
        script.write_text(f"#!/bin/sh\ntouch {fired}\n")
        script.chmod(0o755)
    assert dict(yard.workspaces.merge(place, "claude", theirs, "Merge").conflicts) == {
        "README": "both changed the same lines"
    }
    assert not fired.exists()


def test_what_is_in_the_way_is_told(yard: Yard) -> None:
    """A merge is refused if it would overwrite an ignored file, or if a rebase of the agent is in
    progress."""
    other, _ = placed(yard, "other", kept="theirs\n")
    theirs = yard.workspaces.commit(other, "claude", "Theirs")
    place, top = placed(yard, "work", **{".gitignore": "kept\n", "kept": "precious\n"})
    with pytest.raises(WorkspaceError, match="kept: a file of that name"):
        yard.workspaces.merge(place, "claude", theirs, "Merge")
    assert (top / "kept").read_text() == "precious\n"
    admin = Path(yard.git("rev-parse", "--absolute-git-dir", cwd=top))
    (admin / "rebase-merge").mkdir()
    with pytest.raises(Conflict, match="rebase is in progress"):
        yard.workspaces.commit(place, "claude", "x")


@pytest.mark.parametrize("after", range(1, 56, 5))
def test_a_merge_that_is_killed_is_done_again(yard: Yard, after: int) -> None:
    """One of the git processes of a merge is killed. The next merge gives the same files and
    conflicts, one merge commit, and nothing else."""
    other, _ = placed(yard, "other", README="theirs\n", theirs="theirs\n", more="more\n")
    theirs = yard.workspaces.commit(other, "claude", "Theirs")
    place, top = placed(yard, "work", README="ours\n", left="left\n")
    child = os.fork()
    if not child:
        killed_at(yard, place, theirs, after)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    joined = yard.workspaces.merge(place, "claude", theirs, "Merge")
    assert dict(joined.conflicts) == {"README": "both changed the same lines"}
    assert {path.name for path in top.iterdir()} == {
        ".git",
        ".gitignore",
        "README",
        "src",
        "left",
        "more",
        "theirs",
    }
    assert (top / "README").read_text().count("<<<<<<<") == 1
    assert yard.git("rev-list", "--count", "--merges", "HEAD", cwd=top) == "1"
    assert status(yard, top) == ""


def killed_at(yard: Yard, place: Workspace, theirs: str, after: int) -> None:
    """Merge in a process that kills itself at one of the renames, links and git calls."""
    import sys

    left = after

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("subprocess.Popen", "os.rename", "os.link", "os.mkdir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    yard.workspaces.merge(place, "claude", theirs, "Merge")
    os._exit(0 if left else 1)


def test_the_new_commits_of_the_base(yard: Yard) -> None:
    """`ahead` fetches the base branch and counts its new commits, with the subjects of the newest
    20. The clone cache's refs may be packed. There is no answer for a commit that was removed, and
    an error for a branch that is gone."""
    spaces = yard.workspaces
    place = spaces.plan(yard.spec("isolated", repo=f"file://{yard.repo}"), "one", yard.repo)
    spaces.prepare(place, "claude")
    start = yard.git("rev-parse", "HEAD")
    assert spaces.ahead(place, "main") is None
    for number in range(22):
        yard.git("commit", "--allow-empty", "-q", "-m", f"commit {number}\n\nbody")
    found = spaces.ahead(place, "main")
    assert found is not None and (found.commits, found.commit) == (
        22,
        yard.git("rev-parse", "HEAD"),
    )
    assert found.subjects == tuple(f"commit {number}" for number in range(21, 1, -1))
    for cache in (yard.root / ".perdure" / "repos").glob("*.git"):
        yard.git("pack-refs", "--all", cwd=cache)
    yard.git("commit", "--allow-empty", "-q", "-m", "last")
    found = spaces.ahead(place, "main", yard.git("rev-parse", "HEAD~1"))
    assert found is not None and (found.commits, found.subjects) == (1, ("last",))
    found = spaces.ahead(place, "main", start)
    assert found is not None and found.commits == 23
    assert spaces.ahead(place, "main", "0123456789" * 4) is None
    with pytest.raises(NotFound, match="no branch"):
        spaces.ahead(place, "gone")
