"""A workdir is moved to the trash only if its whole content is saved elsewhere. Nothing of it is
ever deleted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import UsageError
from perdure.model import Workspace
from tests.workspace.yard import REPOSITORIES, Yard

CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"


def made(yard: Yard, backend: str) -> tuple[Workspace, Path]:
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    return workspace, Path(workspace.path)


def commit(yard: Yard, top: Path, text: str = "agent\n") -> str:
    (top / "README").write_text(text)
    yard.git("commit", "-qam", text.strip(), cwd=top)
    return yard.git("rev-parse", "HEAD", cwd=top)


def nested(yard: Yard, top: Path, name: str) -> None:
    yard.git("init", "-q", str(top / name))
    yard.git("commit", "-q", "--allow-empty", "-m", "x", cwd=top / name)


Work = Callable[[Yard, Path], object]

LOSSES: dict[str, tuple[Work, str]] = {
    "a change": (lambda yard, top: (top / "README").write_text("x"), "README"),
    "a deletion": (lambda yard, top: (top / "README").unlink(), "README"),
    "a staged file": (
        lambda yard, top: ((top / "new").write_text("x"), yard.git("add", "new", cwd=top)),
        "new",
    ),
    "an untracked file": (lambda yard, top: (top / "new").write_text("x"), "untracked files: new"),
    "an ignored file": (
        lambda yard, top: (top / "secret.log").write_text("x"),
        "ignored files: secret.log",
    ),
    "a locally excluded file": (
        lambda yard, top: (
            (top / "hidden").write_text("x"),
            Path(
                yard.git(
                    "rev-parse", "--path-format=absolute", "--git-path", "info/exclude", cwd=top
                )
            ).parent.mkdir(exist_ok=True),
            Path(
                yard.git(
                    "rev-parse", "--path-format=absolute", "--git-path", "info/exclude", cwd=top
                )
            ).write_text("hidden\n"),
        ),
        "hidden",
    ),
    "a hidden change": (
        lambda yard, top: (
            yard.git("update-index", "--assume-unchanged", "README", cwd=top),
            (top / "README").write_text("x"),
        ),
        "README",
    ),
    "a hidden new file": (
        lambda yard, top: (
            yard.git("config", "status.showUntrackedFiles", "no", cwd=top),
            (top / "new").write_text("x"),
        ),
        "new",
    ),
    "a nested repository": (lambda yard, top: nested(yard, top, "inner"), "inner"),
    "a repository in a build directory": (
        lambda yard, top: (
            (top / ".gitignore").write_text("node_modules/\n"),
            yard.git("commit", "-qam", "x", cwd=top),
            nested(yard, top, "node_modules/inner"),
        ),
        "node_modules",
    ),
    "a merge in progress": (
        lambda yard, top: Path(
            yard.git("rev-parse", "--path-format=absolute", "--git-path", "MERGE_HEAD", cwd=top)
        ).write_text(yard.git("rev-parse", "HEAD", cwd=top)),
        "a merge is in progress",
    ),
    "a commit on a detached HEAD": (
        lambda yard, top: (yard.git("checkout", "-q", "--detach", cwd=top), commit(yard, top)),
        "HEAD",
    ),
}


@pytest.mark.parametrize("backend", REPOSITORIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_would_be_lost_is_said(yard: Yard, backend: str, loss: str) -> None:
    """Each kind of unsaved work is found and named, however it is hidden from git."""
    workspace, top = made(yard, backend)
    work, word = LOSSES[loss]
    assert yard.workspaces.unsaved(workspace) == []
    work(yard, top)
    said = yard.workspaces.unsaved(workspace)
    assert any(word in sentence for sentence in said), said


def test_commits_on_the_branch_of_a_worktree_are_saved(yard: Yard) -> None:
    """The branch stays in the repository, so a clean worktree with commits may be removed. Build
    output does not prevent that."""
    workspace, top = made(yard, "worktree")
    (top / ".gitignore").write_text("node_modules/\n__pycache__/\ntarget/\n")
    oid = commit(yard, top)
    for name in ("node_modules/x", "src/__pycache__", "target/debug"):
        (top / name).mkdir(parents=True)
        (top / name / "made").write_text("x")
    (top / "target/CACHEDIR.TAG").write_text(CACHE_TAG)
    assert yard.workspaces.unsaved(workspace) == []
    yard.workspaces.trash_workdir(workspace, {})
    assert yard.git("rev-parse", "work") == oid


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_what_stands_in_a_commit_of_the_repository_is_saved(yard: Yard, backend: str) -> None:
    """Changes that were applied and committed elsewhere in the repository count as saved, file by
    file. A file that differs by one byte does not."""
    workspace, top = made(yard, backend)
    (top / "README").write_text("agent\n")
    (top / "new").write_text("new\n")
    (top / "src/file1.txt").unlink()
    yard.workspaces.apply(workspace, yard.repo, "claude")
    assert len(yard.workspaces.unsaved(workspace)) == 2
    yard.git("add", "-A")
    yard.git("commit", "-qm", "taken over")
    assert yard.workspaces.unsaved(workspace) == []
    (top / "new").write_text("newer\n")
    assert len(yard.workspaces.unsaved(workspace)) == 2


@pytest.mark.parametrize("what", ["branch", "other branch", "tag", "stash", "older stash"])
def test_commits_of_an_isolated_workdir_must_be_in_the_repository(yard: Yard, what: str) -> None:
    """Every ref and every stash counts. Once the repository has the commits on a branch, they are
    saved."""
    workspace, top = made(yard, "isolated")
    base = yard.git("rev-parse", "HEAD", cwd=top)
    if what.endswith("stash"):
        (top / "README").write_text("stashed\n")
        yard.git("stash", "-q", cwd=top)
        if what == "older stash":
            yard.git("fetch", "-q", str(top), "refs/stash:refs/heads/older")
            (top / "README").write_text("again\n")
            yard.git("stash", "-q", cwd=top)
            yard.git("fetch", "-q", str(top), "refs/stash:refs/heads/newest")
            yard.git("branch", "-q", "-D", "older")
    else:
        oid = commit(yard, top)
        if what != "branch":
            yard.git("tag" if what == "tag" else "branch", "aside", oid, cwd=top)
            yard.git("reset", "-q", "--hard", base, cwd=top)
    (sentence,) = yard.workspaces.unsaved(workspace)
    assert (
        "nowhere else" in sentence
        and {"branch": "work", "other branch": "aside"}.get(what, what.split()[-1]) in sentence
    )
    if not what.endswith("stash"):
        yard.git("fetch", "-q", str(top), f"{oid}:refs/heads/saved")
        assert yard.workspaces.unsaved(workspace) == []


def test_a_repository_that_cannot_be_asked_keeps_the_workdir(yard: Yard) -> None:
    """If the repository that should have the commits is gone, it is unknown whether they are saved.
    So they count as unsaved, and the workdir stays."""
    workspace, _ = made(yard, "isolated")
    (yard.repo / ".git").rename(yard.top / "gone")
    assert "cannot be read" in yard.workspaces.unsaved(workspace)[0]
    (yard.top / "gone").rename(yard.repo / ".git")
    assert yard.workspaces.unsaved(workspace) == []


def test_a_damaged_workdir_is_kept(yard: Yard) -> None:
    """If a worktree's link to its repository is gone, it is unknown what is saved. So the worktree
    counts as unsaved."""
    workspace, top = made(yard, "worktree")
    (top / ".git").write_text("gitdir: /nowhere\n")
    assert "cannot be read" in yard.workspaces.unsaved(workspace)[0]


def test_a_process_in_the_workdir_keeps_it(yard: Yard) -> None:
    """A process whose current directory is in the workdir, such as a shell or a server, is named,
    and the workdir stays."""
    workspace, top = made(yard, "worktree")
    with subprocess.Popen(["sleep", "60"], cwd=top / "src") as sleeper:
        assert f"process {sleeper.pid} works in it" in yard.workspaces.unsaved(workspace)
        sleeper.kill()
    assert yard.workspaces.unsaved(workspace) == []


def test_files_of_a_task_without_a_repository_are_unsaved(yard: Yard) -> None:
    """A directory without a repository has the only copy of its files, so they count as unsaved. An
    empty directory has nothing unsaved."""
    workspace, top = made(yard, "task")
    assert yard.workspaces.unsaved(workspace) == []
    (top / "report.txt").write_text("x")
    assert "report.txt" in yard.workspaces.unsaved(workspace)[0]


@pytest.mark.parametrize("backend", ["worktree", "isolated", "task"])
def test_everything_is_in_the_trash_afterwards(yard: Yard, backend: str) -> None:
    """The directory is moved to the trash with every file. git no longer lists it as a worktree,
    the branch can be checked out elsewhere, and the task can begin again."""
    workspace, top = made(yard, backend)
    (top / "work.txt").write_text("precious\n")
    (top / "secret.log").write_text("ignored\n")
    trash = yard.workspaces.trash_workdir(workspace, {"run": "brave-otter"})
    assert trash is not None and trash.parent == yard.root / ".perdure/trash"
    assert not top.exists()
    assert (trash / "workdir/work.txt").read_text() == "precious\n" and (
        trash / "workdir/secret.log"
    ).read_text() == "ignored\n"
    assert '"run": "brave-otter"' in (trash / "about.json").read_text()
    assert yard.git("worktree", "list").count("\n") == 0
    if backend == "worktree":
        yard.git("checkout", "-q", "work")
        yard.git("checkout", "-q", "main")
    assert yard.workspaces.trash_workdir(workspace, {}) is None
    assert yard.workspaces.prepare(workspace, "claude").created
    assert not (top / "work.txt").exists()


def test_commits_that_only_the_reflog_knows_get_a_ref(yard: Yard) -> None:
    """Commits that were amended, reset away, or made on a detached HEAD survive git's clean-up
    after their worktree has been removed."""
    workspace, top = made(yard, "worktree")
    amended = commit(yard, top, "one\n")
    (top / "README").write_text("two\n")
    yard.git("commit", "-qa", "--amend", "-m", "two", cwd=top)
    yard.git("checkout", "-q", "--detach", cwd=top)
    detached = commit(yard, top, "three\n")
    yard.workspaces.trash_workdir(workspace, {})
    yard.git("reflog", "expire", "--expire=now", "--all")
    yard.git("gc", "-q", "--prune=now")
    for oid in (amended, detached):
        yard.git("cat-file", "-e", oid)
    assert len(yard.git("for-each-ref", "refs/perdure/rescue").splitlines()) == 2


def test_a_directory_of_the_users_own_is_never_moved(yard: Yard) -> None:
    """A directory that belongs to the user (`here`) is never moved."""
    workspace = yard.plan("here")
    with pytest.raises(UsageError, match="your own"):
        yard.workspaces.trash_workdir(workspace, {})
    assert Path(workspace.path).is_dir()
