"""Spare checkouts: a new workdir that is made from one is the same as one that git checks out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import GitFailed
from perdure.host.git import Git, GitResult
from perdure.model import Workspace
from perdure.workspace import Workspaces
from tests.workspace.yard import REPOSITORIES, Yard


def stocked(yard: Yard, backend: str, most: int = 1) -> Workspaces:
    """Make a first workdir, and then spares of its repository."""
    workspaces = Workspaces(yard.root, environ=yard.environ, spares=most)
    workspaces.prepare(yard.plan(backend, branch="first"), "claude")
    assert workspaces.make_spares() == most
    assert workspaces.make_spares() == 0
    return workspaces


def spares(yard: Yard) -> list[Path]:
    return sorted((yard.root / ".perdure/spares").iterdir())


def grow(yard: Yard) -> None:
    """Commit a changed, a new, a removed and an executable file, a link, and a file in place of a
    directory."""
    src = yard.repo / "src"
    (src / "file0.txt").write_text("changed\n")
    (src / "file1.txt").unlink()
    (src / "file2.txt").chmod(0o755)
    (src / "file3.txt").unlink()
    (src / "file3.txt").symlink_to("file4.txt")
    (yard.repo / "new/deep").mkdir(parents=True)
    (yard.repo / "new/deep/file").write_text("new\n")
    yard.git("add", "-A")
    yard.git("commit", "-qm", "third")


def everything(yard: Yard, top: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of each file that is not git's."""
    found = {}
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        if name.split("/")[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        found[name] = (path.lstat().st_mode, content)
    return found


def assert_like_git(yard: Yard, workspace: Workspace) -> None:
    """The workdir has the files that git writes for its commit, and git sees no change in it."""
    top = Path(workspace.path)
    other = yard.top / f"by-git-{workspace.branch}"
    yard.git("worktree", "add", "-q", "--detach", str(other), yard.git("rev-parse", "HEAD"))
    assert everything(yard, top) == everything(yard, other)
    assert yard.git("status", "--porcelain", "--ignored", cwd=top) == ""
    assert yard.git("rev-parse", "HEAD", cwd=top) == yard.git("rev-parse", "HEAD")
    assert yard.git("branch", "--show-current", cwd=top) == workspace.branch
    assert yard.git("fsck", cwd=top) == ""


@pytest.mark.parametrize("backend", REPOSITORIES)
@pytest.mark.parametrize("later", [False, True])
def test_a_workdir_is_made_of_a_spare(yard: Yard, backend: str, later: bool) -> None:
    """The files of the spare are moved, and those that a later commit changed are written."""
    workspaces = stocked(yard, backend)
    (spare,) = spares(yard)
    known = (spare / "files/README").stat().st_ino
    if later:
        grow(yard)
    workspace = yard.plan(backend)
    assert workspaces.prepare(workspace, "claude").created
    assert Path(workspace.path, "README").stat().st_ino == known
    assert not spares(yard)
    assert_like_git(yard, workspace)
    # Its first checkpoint has everything, and a later change is found.
    saved = workspaces.checkpoints.save(workspace, 1)
    Path(workspace.path, "README").write_text("mine\n")
    assert list(workspaces.checkpoints.drift(workspace, saved.commit)) == ["README"]


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_changed_spare_is_corrected(yard: Yard, backend: str) -> None:
    """If somebody wrote into a spare or removed a file of it, git writes these files again."""
    workspaces = stocked(yard, backend)
    (spare,) = spares(yard)
    (spare / "files/README").write_text("not the commit's\n")
    (spare / "files/src/file5.txt").unlink()
    workspace = yard.plan(backend)
    workspaces.prepare(workspace, "claude")
    assert_like_git(yard, workspace)


def new_attributes(yard: Yard) -> None:
    (yard.repo / "src/.gitattributes").write_text("*.txt eol=crlf\n")
    yard.git("add", "-A")
    yard.git("commit", "-qm", "line ends")


def new_settings(yard: Yard) -> None:
    yard.git("config", "core.autocrlf", "true")


def new_own_attributes(yard: Yard) -> None:
    (yard.repo / ".git/info").mkdir(exist_ok=True)
    (yard.repo / ".git/info/attributes").write_text("*.txt eol=crlf\n")


@pytest.mark.parametrize("change", [new_attributes, new_settings, new_own_attributes])
def test_a_spare_with_other_line_ends_is_not_used(
    yard: Yard, change: Callable[[Yard], None]
) -> None:
    """If the attributes or settings changed, the same blob has other bytes in a checkout. The spare
    is removed, and git writes every file."""
    workspaces = stocked(yard, "worktree")
    change(yard)
    workspace = yard.plan("worktree")
    workspaces.prepare(workspace, "claude")
    assert b"\r\n" in Path(workspace.path, "src/file5.txt").read_bytes()
    assert_like_git(yard, workspace)
    assert not spares(yard)


def test_settings_in_another_file_forbid_spares(yard: Yard) -> None:
    """Settings that the repository includes from another file could change without being
    noticed."""
    yard.git("config", "include.path", "../more")
    workspaces = Workspaces(yard.root, environ=yard.environ, spares=1)
    workspaces.prepare(yard.plan("worktree"), "claude")
    assert workspaces.make_spares() == 0


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_commit_that_is_gone(yard: Yard, backend: str) -> None:
    """If git has removed the commit of a spare, the spare is not used."""
    workspaces = stocked(yard, backend)
    (spare,) = spares(yard)
    about = (spare / "about").read_text()
    (spare / "about").write_text("1" * 40 + about[40:])
    workspace = yard.plan(backend)
    workspaces.prepare(workspace, "claude")
    assert_like_git(yard, workspace)
    assert not spares(yard)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_kill_before_the_files_are_written(
    yard: Yard, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If perdure is killed when the spare's files are in place but not those of the commit, the
    next attempt makes the workdir."""
    workspaces = stocked(yard, backend)
    grow(yard)
    workspace = yard.plan(backend)
    run = Git.run

    def killed(self: Git, *words: str, **more: object) -> GitResult:
        if words[0] == "read-tree":
            raise KeyboardInterrupt
        return run(self, *words, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Git, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            workspaces.prepare(workspace, "claude")
    assert not spares(yard)
    assert workspaces.prepare(workspace, "claude").created
    assert_like_git(yard, workspace)


def test_a_half_made_spare_is_made_again(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spare whose making failed is not used, and does not prevent the next one."""
    workspaces = Workspaces(yard.root, environ=yard.environ, spares=1)
    workspaces.prepare(yard.plan("worktree", branch="first"), "claude")
    run = Git.run

    def full(self: Git, *words: str, **more: object) -> GitResult:
        if words[0] == "read-tree" and self.work_tree is not None:
            (self.work_tree / "half").write_text("")
            raise GitFailed("no space left on device")
        return run(self, *words, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Git, "run", full)
        with pytest.raises(GitFailed):
            workspaces.make_spares()
    workspaces.prepare(yard.plan("worktree", branch="second"), "claude")
    assert workspaces.make_spares() == 1
    workspace = yard.plan("worktree")
    workspaces.prepare(workspace, "claude")
    assert_like_git(yard, workspace)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_many_workdirs_at_once(yard: Yard, backend: str) -> None:
    """Six workdirs are made at once where three spares exist. Each has files of its own."""
    workspaces = stocked(yard, backend, most=3)
    planned = [yard.plan(backend, branch=f"b{number}") for number in range(6)]
    threads = [
        threading.Thread(target=workspaces.prepare, args=(each, "claude")) for each in planned
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({Path(each.path, "README").stat().st_ino for each in planned}) == 6
    for each in planned:
        assert_like_git(yard, each)
    assert not spares(yard)
    assert workspaces.make_spares() == 3


def test_spares_are_listed_as_temporary_files(yard: Yard) -> None:
    """The sweep finds spares, and removes those that nobody has used for long."""
    workspaces = stocked(yard, "worktree", most=2)
    found = [item for item in workspaces.contents() if item.kind == "scratch"]
    assert [item.path for item in found] == spares(yard)
    assert all(item.used > 0 and not item.keep for item in found)
    workspaces.move_to_trash(found[0], {"why": "a test"})
    assert [found[1].path] == spares(yard)
