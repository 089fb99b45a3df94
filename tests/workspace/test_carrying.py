"""Uncommitted work is copied into another workdir, complete and unchanged. The source is not
touched."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from perdure.model import Workspace
from perdure.workspace.worktree import CHECKOUT_INDEX
from tests.workspace.yard import Yard


def marks(top: Path) -> dict[str, tuple[int, str]]:
    """Return kind, mode and content of every file except git's own, and perdure's own in a git
    directory."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if name.split("/")[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        if name == CHECKOUT_INDEX:
            continue
        content = (
            os.fsencode(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else b""
        )
        found[name] = (path.lstat().st_mode, hashlib.sha256(content).hexdigest())
    return found


def two(yard: Yard) -> tuple[Workspace, Workspace]:
    """Make a worktree with one commit of its own, and another worktree that begins at that
    commit."""
    source = yard.plan("worktree", branch="parent")
    env = yard.workspaces.prepare(source, "claude").env
    top = Path(source.path)
    (top / "shortcut").symlink_to("src")
    yard.git("add", ".", cwd=top)
    yard.git("commit", "-qm", "a link", cwd=top, env=env)
    target = yard.plan("worktree", branch="fork", base=yard.git("rev-parse", "HEAD", cwd=top))
    yard.workspaces.prepare(target, "claude")
    return source, target


def test_every_kind_of_change_is_carried(yard: Yard) -> None:
    """Changed, new, staged and deleted files, unusual names and bytes, modes and links, and small
    ignored files are copied. The source is unchanged."""
    source, target = two(yard)
    top = Path(source.path)
    (top / "README").write_bytes(b"\x00\xff\r\n")
    (top / "src/file1.txt").unlink()
    for name in ("a\nb", "-D", "é", "deep/er/x", "quiet.log"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "src/file2.txt").chmod(0o755)
    (top / "src/file3.txt").unlink()
    (top / "src/file3.txt").symlink_to("/nonexistent/outside")
    (top / "staged").write_text("staged")
    yard.git("add", "staged", cwd=top)
    admin = Path(yard.git("rev-parse", "--absolute-git-dir", cwd=top))
    before = marks(top), marks(admin)
    yard.workspaces.checkpoints.copy_state(source, target)
    assert (marks(top), marks(admin)) == before
    assert marks(Path(target.path)) == before[0]
    assert yard.git("diff", "--cached", "--name-only", cwd=target.path) == "staged"
    yard.workspaces.checkpoints.copy_state(source, target)
    assert marks(Path(target.path)) == before[0]
    assert yard.git("diff", "--cached", "--name-only", cwd=target.path) == "staged"


def test_a_directory_takes_a_links_place_and_the_other_way_round(yard: Yard) -> None:
    """A directory replaces a link, and a link replaces a directory. Nothing is written through a
    link in the target."""
    source, target = two(yard)
    top, to = Path(source.path), Path(target.path)
    (top / "shortcut").unlink()
    (top / "shortcut/deep").mkdir(parents=True)
    (top / "shortcut/deep/file1.txt").write_text("behind the link")
    for path in (top / "src").iterdir():
        path.unlink()
    (top / "src").rmdir()
    (top / "src").symlink_to("/nonexistent/elsewhere")
    before = (to / "src/file1.txt").read_text()
    yard.workspaces.checkpoints.copy_state(source, target)
    assert before == "1\n" * 20
    assert marks(to) == marks(top)
    assert stat.S_ISLNK((to / "src").lstat().st_mode) and not (to / "shortcut").is_symlink()


def test_a_repository_inside_is_carried_whole(yard: Yard) -> None:
    """A repository inside the workdir is copied with its files and its git directory. Special files
    are left out."""
    source, target = two(yard)
    top, to = Path(source.path), Path(target.path)
    (top / "inner").mkdir()
    yard.git("init", "-q", cwd=top / "inner")
    (top / "inner/own.txt").write_text("own")
    os.mkfifo(top / "pipe")
    yard.workspaces.checkpoints.copy_state(source, target)
    assert (to / "inner/own.txt").read_text() == "own"
    assert (to / "inner/.git/HEAD").read_text() == (
        top / "inner/.git/HEAD"
    ).read_text() and not os.path.lexists(to / "pipe")


@pytest.mark.parametrize("filtered", ["smudge", "eol"])
def test_no_filter_of_the_repository_takes_part(yard: Yard, filtered: str) -> None:
    """The bytes of files are copied as they are. Neither a filter nor a line-end setting of the
    repository changes them."""
    source, target = two(yard)
    top, to = Path(source.path), Path(target.path)
    mark = yard.top / "a filter ran"
    yard.git("config", "filter.evil.smudge", f"touch '{mark}'; cat")
    yard.git("config", "filter.evil.clean", f"touch '{mark}'; cat")
    (top / ".gitattributes").write_text(
        "* filter=evil\n" if filtered == "smudge" else "* text eol=crlf\n"
    )
    (top / "README").write_bytes(b"one\ntwo\r\nthree\n")
    mark.unlink(missing_ok=True)
    yard.workspaces.checkpoints.copy_state(source, target)
    assert (to / "README").read_bytes() == b"one\ntwo\r\nthree\n"
    assert not mark.exists()


def test_a_task_without_git_is_carried_whole(yard: Yard) -> None:
    """Every file and link of a service's task without git is copied, even hidden ones."""
    source, target = yard.plan("task"), yard.plan("task", task="t2")
    for each in (source, target):
        yard.workspaces.prepare(each, "claude")
    top = Path(source.path)
    (top / "deep").mkdir()
    (top / "deep/.hidden").write_text("x")
    (top / "link").symlink_to("deep")
    before = marks(top)
    yard.workspaces.checkpoints.copy_state(source, target)
    assert marks(Path(target.path)) == before == marks(top)


def test_a_directory_of_the_users_own_can_be_the_source(yard: Yard) -> None:
    """A run worked `here`, in the user's checkout. Its fork gets a worktree, and the checkout is
    unchanged."""
    source = yard.workspaces.plan(
        yard.spec("here").__class__(prompt="p", here=str(yard.repo)), "brave-otter", yard.repo
    )
    (yard.repo / "new.txt").write_text("x")
    index = (yard.repo / ".git/index").read_bytes()
    target = yard.plan("worktree", branch="fork", base=yard.git("rev-parse", "HEAD"))
    yard.workspaces.prepare(target, "claude")
    yard.workspaces.checkpoints.copy_state(source, target)
    assert marks(Path(target.path)) == marks(yard.repo)
    assert (yard.repo / ".git/index").read_bytes() == index
    assert (
        subprocess.run(
            ["git", "status", "--short"], cwd=yard.repo, capture_output=True, text=True, check=True
        ).stdout
        == "?? new.txt\n"
    )
