"""One conformance suite for all ways to make a workdir."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from perdure.errors import Conflict, NotFound, WorkspaceError
from perdure.workspace import Prepared
from tests import spread
from tests.workspace.yard import BACKENDS, REPOSITORIES, Yard


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_workdir_is_made_once_and_then_found_again(yard: Yard, backend: str) -> None:
    """Planning twice gives the same path. Preparing twice makes the workdir once."""
    workspace = yard.plan(backend)
    assert yard.plan(backend) == workspace
    first, second = (
        yard.workspaces.prepare(workspace, "claude"),
        yard.workspaces.prepare(workspace, "claude"),
    )
    assert (first.created, second.created) == (backend != "here", False)
    assert Path(workspace.path).is_dir()
    if backend in REPOSITORIES:
        assert first.head == second.head == yard.git("rev-parse", "HEAD")
        assert (Path(workspace.path) / "README").read_text() == "second\n"
        assert yard.git("symbolic-ref", "HEAD", cwd=workspace.path) == "refs/heads/work"
        assert yard.git("status", "--porcelain", cwd=workspace.path) == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_reuse_keeps_what_is_not_committed(yard: Yard, backend: str) -> None:
    """Changed, staged, untracked and ignored files are not changed by the next prepare."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    for name in ("README", "new.txt", "kept.log"):
        (top / name).write_text(f"agent's {name}\n")
    if backend in REPOSITORIES:
        yard.git("add", "new.txt", cwd=top)
    yard.workspaces.prepare(workspace, "claude")
    assert [(top / name).read_text() for name in ("README", "new.txt", "kept.log")] == [
        "agent's README\n",
        "agent's new.txt\n",
        "agent's kept.log\n",
    ]
    if backend in REPOSITORIES:
        assert yard.git("diff", "--cached", "--name-only", cwd=top) == "new.txt"


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_agents_and_branches_have_places_of_their_own(yard: Yard, backend: str) -> None:
    """The workdirs of two agents on one repository, and of two branches of one agent, are separate:
    neither has the other's files."""
    plans = [
        yard.plan(backend, agent="claude", branch="one"),
        yard.plan(backend, agent="codex", branch="two"),
        yard.plan(backend, agent="claude", branch="three"),
    ]
    for number, workspace in enumerate(plans):
        yard.workspaces.prepare(workspace, "claude")
        (Path(workspace.path) / "mine").write_text(str(number))
    assert len({workspace.path for workspace in plans}) == 3
    assert [(Path(workspace.path) / "mine").read_text() for workspace in plans] == ["0", "1", "2"]


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_the_path_depends_on_repository_agent_and_branch_alone(yard: Yard, backend: str) -> None:
    """Base, run name, backend and the user's current directory do not change the path of a workdir."""
    workspace = yard.plan(backend)
    other = "isolated" if backend == "worktree" else "worktree"
    assert yard.plan(other).path == workspace.path
    assert yard.plan(backend, base="HEAD~1").path == workspace.path
    inside = yard.workspaces.plan(yard.spec(backend, repo=""), "quiet-fox", yard.repo / "src")
    assert inside.path == workspace.path


def test_a_workdir_of_the_other_backend_is_not_taken_for_ones_own(yard: Yard) -> None:
    """The same path with another backend is refused, in both directions, and its files stay."""
    for made, asked in (REPOSITORIES, REPOSITORIES[::-1]):
        branch = f"as-{made}"
        yard.workspaces.prepare(yard.plan(made, branch=branch), "claude")
        workspace = yard.plan(asked, branch=branch)
        with pytest.raises(WorkspaceError, match="Nothing was changed"):
            yard.workspaces.prepare(workspace, "claude")
        assert (Path(workspace.path) / "README").exists()


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_an_existing_branch_is_gone_on_with(yard: Yard, backend: str) -> None:
    """An existing branch continues from its commits, and is not restarted from the base."""
    tip = yard.git("commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "earlier work")
    yard.git("branch", "work", tip)
    prepared = yard.workspaces.prepare(yard.plan(backend, base="HEAD~1"), "claude")
    assert prepared.head == tip
    assert "used as it is" in " ".join(prepared.notes)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_the_base_is_where_a_branch_starts(yard: Yard, backend: str) -> None:
    """A branch starts at the base, which may be a commit that no branch points to."""
    loose = yard.git("commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "on no branch")
    assert yard.workspaces.prepare(yard.plan(backend, base=loose), "claude").head == loose


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_an_agent_that_commits_is_named(yard: Yard, backend: str) -> None:
    """Commits have the agent as author and the user as committer. No configuration of the
    repository is changed."""
    before = (yard.repo / ".git/config").read_bytes()
    workspace = yard.plan(backend)
    prepared = yard.workspaces.prepare(workspace, "codex")
    yard.git("commit", "--allow-empty", "-qm", "done", cwd=workspace.path, env=prepared.env)
    said = yard.git("log", "-1", "--format=%an <%ae> %cn <%ce>", cwd=workspace.path)
    assert said == "codex (perdure) <codex@perdure.invalid> Una User <una@example.org>"
    assert (yard.repo / ".git/config").read_bytes() == before
    assert yard.workspaces.prepare(workspace, "codex").head == yard.git(
        "rev-parse", "HEAD", cwd=workspace.path
    )


def test_an_agent_commits_without_a_user(yard: Yard) -> None:
    """On a machine without a configured identity, agents can still commit."""
    (yard.top / "home/.gitconfig").unlink()
    workspace = yard.plan("worktree")
    prepared = yard.workspaces.prepare(workspace, "claude")
    yard.git("commit", "--allow-empty", "-qm", "done", cwd=workspace.path, env=prepared.env)
    assert yard.git("log", "-1", "--format=%cn", cwd=workspace.path) == "claude (perdure)"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_one_is_told_who_is_at_work(yard: Yard, backend: str) -> None:
    """The lock of a workdir is exclusive and names its holder. It is free again when the last
    descriptor is closed."""
    workspace = yard.plan(backend)
    fd = yard.workspaces.lock(workspace, "brave-otter")
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd]
    )
    os.close(fd)
    with pytest.raises(Conflict, match=f"brave-otter \\(process {os.getpid()}"):
        yard.workspaces.lock(workspace)
    child.communicate(b"\n")
    os.close(yard.workspaces.lock(workspace))


def test_a_lock_that_somebody_has_for_a_moment_more(yard: Yard) -> None:
    """A child process that another thread has just started has all descriptors until its exec, but
    does not count as a holder of the lock."""
    workspace = yard.plan("worktree")
    fd = yard.workspaces.lock(workspace, "brave-otter")
    with subprocess.Popen(["sleep", "0.2"], pass_fds=[fd]):
        os.close(fd)
        os.close(yard.workspaces.lock(workspace))


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_many_prepare_one_workdir_at_once(yard: Yard, backend: str) -> None:
    """Six callers prepare one workdir at the same moment. One of them makes it, and all get it
    complete."""
    workspace = yard.plan(backend)
    got: list[Prepared] = []
    threads = [
        threading.Thread(target=lambda: got.append(yard.workspaces.prepare(workspace, "claude")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(prepared.created for prepared in got) == [False] * 5 + [True]
    assert yard.workspaces.state(workspace).changed == 0


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_many_workdirs_of_one_repository_at_once(yard: Yard, backend: str) -> None:
    """Six agents are dispatched together on one repository. Each gets its own workdir, and none
    fails because of a lock of git."""
    plans = [
        yard.plan(backend, agent=f"agent{number}", branch=f"b/{number}") for number in range(6)
    ]
    got: list[Prepared] = []
    threads = [
        threading.Thread(
            target=lambda workspace=workspace: got.append(
                yard.workspaces.prepare(workspace, "claude")
            )
        )
        for workspace in plans
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [prepared.created for prepared in got] == [True] * 6


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_what_a_killed_git_of_the_agent_locked_is_free_again(yard: Yard, backend: str) -> None:
    """An index.lock whose git has ended does not stop the next attempt. If that git is alive, the
    lock stays."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    lock = Path(yard.git("rev-parse", "--absolute-git-dir", cwd=workspace.path)) / "index.lock"
    lock.touch()
    with subprocess.Popen(
        ["git", "hash-object", "--stdin"],
        cwd=workspace.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as alive:
        while Path(f"/proc/{alive.pid}/comm").read_text() != "git\n":
            pass
        yard.workspaces.prepare(workspace, "claude")
        assert lock.exists()
        alive.communicate(b"")
    assert "index.lock" in " ".join(yard.workspaces.prepare(workspace, "claude").notes)
    yard.git("add", ".", cwd=workspace.path)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_files_that_have_lost_their_repository_are_never_touched(yard: Yard, backend: str) -> None:
    """A workdir whose .git is gone still has work. The attempt is refused with a sentence that says
    what to do, and the files are kept."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    (top / "work.txt").write_text("hours\n")
    spread.rename(top / ".git", yard.top / "taken-away")
    with pytest.raises(WorkspaceError, match="Nothing was changed"):
        yard.workspaces.prepare(workspace, "claude")
    with pytest.raises(WorkspaceError):
        yard.workspaces.state(workspace)
    assert (top / "work.txt").read_text() == "hours\n"


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_workdir_that_was_deleted_is_made_again_on_its_branch(yard: Yard, backend: str) -> None:
    """When a deleted workdir is made again, a worktree has the commits of its branch. An isolated
    workdir starts from what its origin has."""
    workspace = yard.plan(backend)
    env = yard.workspaces.prepare(workspace, "claude").env
    yard.git("commit", "--allow-empty", "-qm", "kept", cwd=workspace.path, env=env)
    tip = yard.git("rev-parse", "HEAD", cwd=workspace.path)
    shutil.rmtree(workspace.path)
    again = yard.workspaces.prepare(workspace, "claude")
    assert again.created
    assert (again.head == tip) == (backend == "worktree")


def test_commits_on_no_branch_outlive_their_worktree(yard: Yard) -> None:
    """If a worktree's directory is gone and its HEAD was detached, its commits are saved under a
    rescue ref before anything else."""
    workspace = yard.plan("worktree")
    env = yard.workspaces.prepare(workspace, "claude").env
    yard.git("checkout", "-q", "--detach", cwd=workspace.path)
    yard.git("commit", "--allow-empty", "-qm", "loose", cwd=workspace.path, env=env)
    loose = yard.git("rev-parse", "HEAD", cwd=workspace.path)
    shutil.rmtree(workspace.path)
    yard.workspaces.prepare(workspace, "claude")
    assert yard.git("for-each-ref", "--format=%(objectname)", "refs/perdure/rescue") == loose


def test_a_worktree_survives_prune_while_its_volume_is_away(yard: Yard) -> None:
    """`git worktree prune` in the user's repository does not remove a worktree whose volume is not
    mounted at that moment."""
    workspace = yard.plan("worktree")
    yard.workspaces.prepare(workspace, "claude")
    (Path(workspace.path) / "work.txt").write_text("hours\n")
    spread.rename(yard.root, yard.top / "unmounted")
    yard.git("worktree", "prune", "--expire=now")
    (yard.top / "unmounted").rename(yard.root)
    assert not yard.workspaces.prepare(workspace, "claude").created
    assert (Path(workspace.path) / "work.txt").exists()


def test_a_missing_repository_touches_nothing(yard: Yard) -> None:
    """While the repository's volume is not mounted, a worktree is refused with a sentence."""
    workspace = yard.plan("worktree")
    yard.workspaces.prepare(workspace, "claude")
    yard.repo.rename(yard.top / "away")
    with pytest.raises(WorkspaceError, match="does not exist"):
        yard.workspaces.prepare(workspace, "claude")
    assert (Path(workspace.path) / "README").exists()


def test_a_task_directory_stays_below_its_root(yard: Yard) -> None:
    """A link in place of a service's directory is refused, because it would lead elsewhere."""
    yard.root.mkdir(exist_ok=True)
    (yard.root / "shop").symlink_to(yard.top / "plain")
    with pytest.raises(WorkspaceError, match="is a link"):
        yard.workspaces.prepare(yard.plan("task"), "claude")
    assert list((yard.top / "plain").iterdir()) == []


def test_the_directory_of_here_must_be_there(yard: Yard) -> None:
    """A directory that was removed between plan and attempt is a NotFound, and is not created."""
    workspace = yard.plan("here")
    (yard.top / "plain").rmdir()
    with pytest.raises(NotFound):
        yard.workspaces.prepare(workspace, "claude")


def test_a_bare_repository_has_worktrees_too(yard: Yard) -> None:
    """A bare repository named with --repo works like a checkout."""
    yard.git("clone", "-q", "--bare", str(yard.repo), str(yard.top / "bare.git"))
    workspace = yard.plan("worktree", repo=str(yard.top / "bare.git"))
    assert yard.workspaces.prepare(workspace, "claude").created
    assert yard.workspaces.state(workspace).branch == "work"


def test_a_worktree_that_git_forgot_is_linked_again(yard: Yard) -> None:
    """The worktree's admin directory was lost, for example because the repository was restored from
    a backup, or because of an agent's `rm`. The files stay, the branch is the same, and git works
    again."""
    workspace = yard.plan("worktree")
    env = yard.workspaces.prepare(workspace, "claude").env
    top = Path(workspace.path)
    yard.git("commit", "--allow-empty", "-qm", "kept", cwd=top, env=env)
    tip = yard.git("rev-parse", "HEAD", cwd=top)
    (top / "README").write_text("changed\n")
    (top / "new").write_text("new\n")
    shutil.rmtree(yard.repo / ".git/worktrees")
    again = yard.workspaces.prepare(workspace, "claude")
    assert not again.created and again.head == tip and "linked again" in " ".join(again.notes)
    state = yard.workspaces.state(workspace)
    assert (state.branch, state.paths) == ("work", ("README", "new"))
    assert (top / "README").read_text() == "changed\n"
    assert yard.git("worktree", "prune", "--expire=now") == yard.git("fsck", "--no-dangling") == ""
    yard.git("commit", "-qam", "goes on", cwd=top, env=env)
    assert not yard.workspaces.prepare(workspace, "claude").notes


@pytest.mark.parametrize(
    "how", ["branch gone", "branch taken", "points elsewhere", "is a link", "has another owner"]
)
def test_a_forgotten_worktree_is_not_linked_where_that_is_a_guess(yard: Yard, how: str) -> None:
    """A worktree without its branch, with a branch that is in use elsewhere, or with a `.git` that
    was changed is not linked again. It is refused, and nothing is changed."""
    workspace = yard.plan("worktree")
    yard.workspaces.prepare(workspace, "claude")
    top, admins = Path(workspace.path), yard.repo / ".git/worktrees"
    (top / "work.txt").write_text("hours\n")
    admin = next(admins.iterdir())
    shutil.rmtree(admin)
    match how:
        case "branch gone":
            yard.git("update-ref", "-d", "refs/heads/work")
        case "branch taken":
            yard.git("checkout", "-q", "work")
        case "points elsewhere":
            (top / ".git").write_text(f"gitdir: {yard.repo}/.git/hooks/x\n")
        case "is a link":
            spread.rename(top / ".git", yard.top / "pointer")
            (top / ".git").symlink_to(yard.top / "pointer")
        case _:
            yard.git("worktree", "add", "-q", "--detach", str(yard.top / "second"))
            next(admins.iterdir()).rename(admin)
    with pytest.raises(WorkspaceError, match="Nothing was changed"):
        yard.workspaces.prepare(workspace, "claude")
    assert (top / "work.txt").read_text() == "hours\n"
    assert [path.name for path in admins.glob("*")] == (
        [admin.name] if how == "has another owner" else []
    )
