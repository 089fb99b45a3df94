"""The reported state of a workdir, and the contents of a rescue."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from perdure.errors import WorkspaceError
from perdure.model import TaskSpec
from tests.workspace.yard import REPOSITORIES, Yard


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_the_state_counts_and_names_what_differs(yard: Yard, backend: str) -> None:
    """Changed, staged, deleted and untracked files are counted by kind, and the first twenty are
    named. Ignored files are not counted."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    assert yard.workspaces.state(workspace).changed == 0
    (top / "README").write_text("x")
    (top / "src/file1.txt").unlink()
    for name in ("a\nb", "-D", "é", "quiet.log"):
        (top / name).write_text("x")
    for number in range(30):
        (top / f"z{number}").write_text("x")
    state = yard.workspaces.state(workspace)
    assert (state.changed, state.untracked, state.branch) == (2, 33, "work")
    assert state.head == yard.git("rev-parse", "HEAD", cwd=top)
    assert (
        state.paths[:2] == ("README", "src/file1.txt")
        and len(state.paths) == 20
        and "a\nb" in state.paths
    )


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_the_state_follows_head(yard: Yard, backend: str) -> None:
    """The state shows the current HEAD: after the agent's commit, after a switch to another branch,
    and with a detached HEAD."""
    workspace = yard.plan(backend)
    env = yard.workspaces.prepare(workspace, "claude").env
    (Path(workspace.path) / "README").write_text("x")
    assert yard.workspaces.state(workspace).changed == 1
    yard.git("commit", "-qam", "done", cwd=workspace.path, env=env)
    assert yard.workspaces.state(workspace).changed == 0
    yard.git("checkout", "-q", "-b", "elsewhere", "HEAD~1", cwd=workspace.path)
    state = yard.workspaces.state(workspace)
    assert (state.branch, state.changed) == ("elsewhere", 0)
    assert "not on work" in " ".join(yard.workspaces.prepare(workspace, "claude").notes)
    yard.git("checkout", "-q", "--detach", cwd=workspace.path)
    assert yard.workspaces.state(workspace).branch == ""


@pytest.mark.parametrize("backend", REPOSITORIES)
@pytest.mark.parametrize("what", ["merge", "rebase", "cherry-pick", "revert"])
def test_the_state_says_what_is_in_progress(yard: Yard, backend: str, what: str) -> None:
    """A merge, rebase, cherry-pick or revert that stopped on a conflict is named."""
    workspace = yard.plan(backend)
    env = yard.workspaces.prepare(workspace, "claude").env
    top = Path(workspace.path)
    yard.git("checkout", "-qb", "other", "HEAD~1", cwd=top)
    (top / "README").write_text("other\n")
    yard.git("commit", "-qam", "other", cwd=top, env=env)
    yard.git("checkout", "-q", "work", cwd=top)
    yard.git(what, "HEAD~1" if what == "revert" else "other", cwd=top, env=env, check=False)
    if what == "revert":
        yard.git("revert", "--abort", cwd=top, check=False)
        (top / "README").write_text("third\n")
        yard.git("commit", "-qam", "third", cwd=top, env=env)
        yard.git("revert", "--no-edit", "HEAD~1", cwd=top, env=env, check=False)
    assert yard.workspaces.state(workspace).in_progress == what


def test_an_agent_cannot_hide_its_changes_in_an_isolated_workdir(yard: Yard) -> None:
    """assume-unchanged, info/exclude and showUntrackedFiles=no hide changes from the agent's own
    `git status`, but not from perdure."""
    workspace = yard.plan("isolated")
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    (top / "README").write_text("x")
    (top / "hidden").write_text("x")
    yard.git("update-index", "--assume-unchanged", "README", cwd=top)
    (top / ".git/info").mkdir(exist_ok=True)
    (top / ".git/info/exclude").write_text("hidden\n")
    yard.git("config", "status.showUntrackedFiles", "no", cwd=top)
    assert yard.git("status", "--porcelain", cwd=top) == ""
    state = yard.workspaces.state(workspace)
    assert state.paths == ("README", "hidden")


def test_a_broken_view_is_made_again(yard: Yard) -> None:
    """The repository by which perdure reads a workdir is rebuilt without a message if it is damaged
    or incomplete."""
    workspace = yard.plan("isolated")
    yard.workspaces.prepare(workspace, "claude")
    (Path(workspace.path) / "README").write_text("x")
    yard.workspaces.state(workspace)
    view = next((yard.root / ".perdure/views").iterdir())
    (view / "index").write_bytes(b"torn")
    (view / "index.lock").touch()
    assert yard.workspaces.state(workspace).changed == 1


@pytest.mark.parametrize("backend", ["task", "here"])
def test_a_directory_without_git_has_only_files(yard: Yard, backend: str) -> None:
    """Without a repository every file counts as untracked, and a rescue is refused with a
    sentence."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    (Path(workspace.path) / "sub").mkdir(exist_ok=True)
    (Path(workspace.path) / "sub/note").write_text("x")
    state = yard.workspaces.state(workspace)
    assert (state.head, state.untracked, state.paths) == ("", 1, ("sub/note",))
    with pytest.raises(WorkspaceError, match="not in a git repository"):
        yard.workspaces.rescue(workspace, "test")


def test_here_in_a_repository_is_told_as_one(yard: Yard) -> None:
    """A run with `here` in a subdirectory of the user's checkout shows that checkout's branch and
    changes, and can be rescued."""
    workspace = yard.workspaces.plan(TaskSpec(prompt="p", here="src"), "brave-otter", yard.repo)
    (yard.repo / "README").write_text("x")
    state = yard.workspaces.state(workspace)
    assert (state.branch, state.paths) == ("main", ("README",))
    assert yard.git("show", f"{yard.workspaces.rescue(workspace, 'test')}:README") == "x"


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_rescue_holds_every_byte_and_changes_nothing(yard: Yard, backend: str) -> None:
    """Changed, untracked, oddly named, executable, linked and nested files can be restored from a
    rescue byte for byte, and deleted files are deleted in it. The workdir is not changed."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    (top / ".gitattributes").write_text("* text=auto eol=crlf ident\n")
    files = {
        "README": b"$Id$\r\nx\n",
        "a\nb": b"\0\xff",
        'q"\\': b"",
        "é/\udcff": b"deep",
        "nested/inner": b"in a repository of its own",
    }
    for name, content in files.items():
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(content)
    yard.git("init", "-q", "nested", cwd=top)
    (top / "src/file0.txt").chmod(0o755)
    (top / "src/file1.txt").unlink()
    (top / "link").symlink_to("/etc/passwd")
    os.mkfifo(top / "pipe")
    before = yard.git("status", "--porcelain", cwd=top), yard.git("rev-parse", "HEAD", cwd=top)

    ref = yard.workspaces.rescue(workspace, "before a reset")

    assert ref.startswith(f"refs/perdure/rescue/{workspace.id}/")
    assert (
        yard.git("status", "--porcelain", cwd=top),
        yard.git("rev-parse", "HEAD", cwd=top),
    ) == before
    assert yard.git("rev-parse", f"{ref}^", cwd=top) == before[1]
    out = yard.top / "out"
    yard.git("clone", "-q", "--no-checkout", str(top), str(out))
    yard.git("fetch", "-q", "origin", ref, cwd=out)
    (out / ".git/info").mkdir(exist_ok=True)
    (out / ".git/info/attributes").write_text("* -text -eol -ident\n")
    yard.git("checkout", "-q", "FETCH_HEAD", cwd=out)
    assert {name: (out / name).read_bytes() for name in files} == files
    assert (out / "link").readlink() == Path("/etc/passwd")
    assert os.access(out / "src/file0.txt", os.X_OK) and not (out / "src/file1.txt").exists()
    assert yard.git("fsck", cwd=top) == ""


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_two_rescues_are_both_kept(yard: Yard, backend: str) -> None:
    """A second rescue does not replace the first one."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    refs = {yard.workspaces.rescue(workspace, "one"), yard.workspaces.rescue(workspace, "two")}
    assert (
        set(
            yard.git(
                "for-each-ref", "--format=%(refname)", "refs/perdure", cwd=workspace.path
            ).splitlines()
        )
        == refs
    )


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_state_that_cannot_be_known_is_an_error(yard: Yard, backend: str) -> None:
    """A missing directory and a damaged repository are an error, and never reported as a clean
    workdir."""
    workspace = yard.plan(backend)
    yard.workspaces.prepare(workspace, "claude")
    (Path(yard.git("rev-parse", "--absolute-git-dir", cwd=workspace.path)) / "HEAD").write_text(
        "rubbish\n"
    )
    with pytest.raises(WorkspaceError):
        yard.workspaces.state(workspace)
    shutil.rmtree(workspace.path)
    with pytest.raises(WorkspaceError, match="does not exist"):
        yard.workspaces.state(workspace)
