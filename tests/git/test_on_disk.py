"""HEAD and the user's name are read directly from files. The result equals git's own answer, or is
empty."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.host.git import Git, on_disk, require
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


def _asked(yard: Yard, place: Path) -> tuple[str, str]:
    """Return HEAD's branch and commit in a workdir, as git itself reports them."""
    branch = yard.git("symbolic-ref", "--quiet", "--short", "HEAD", cwd=place, check=False)
    return yard.git("rev-parse", "HEAD", cwd=place), branch


def test_head_is_what_git_says(yard: Yard) -> None:
    """HEAD is read correctly on a loose branch, a packed branch, one that is both, a detached HEAD
    and in a linked worktree."""
    git_dir = yard.repo / ".git"
    linked = yard.top / "linked"
    yard.git("worktree", "add", "-q", "-b", "deep/er", str(linked))
    assert on_disk.head(git_dir) == _asked(yard, yard.repo)
    assert on_disk.head(linked / ".git") == _asked(yard, linked)
    yard.git("pack-refs", "--all", "--prune")
    assert not (git_dir / "refs/heads/main").exists()
    assert on_disk.head(git_dir) == _asked(yard, yard.repo)
    assert on_disk.head(linked / ".git") == _asked(yard, linked)
    for place in (yard.repo, linked):
        yard.git("commit", "--allow-empty", "-q", "-m", "more", cwd=place)
    assert on_disk.head(git_dir) == _asked(yard, yard.repo)
    assert on_disk.head(linked / ".git") == _asked(yard, linked)
    yard.git("checkout", "-q", "--detach", cwd=linked)
    assert on_disk.head(linked / ".git") == _asked(yard, linked)


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda git_dir: (git_dir / name).write_text(text, encoding="utf-8") and None


def _append(text: str) -> Callable[[Path], None]:
    def change(git_dir: Path) -> None:
        with (git_dir / "config").open("a", encoding="utf-8") as file:
            file.write(text)

    return change


def _pipe(git_dir: Path) -> None:
    (git_dir / "HEAD").unlink()
    os.mkfifo(git_dir / "HEAD")


def _link(git_dir: Path) -> None:
    (git_dir / "refs/heads/main").rename(git_dir / "elsewhere")
    (git_dir / "refs/heads/main").symlink_to(git_dir / "elsewhere")


def test_refs_are_what_git_says(yard: Yard) -> None:
    """Loose and packed refs are read. If a ref is both, the loose one counts. A lock file of git is
    not a ref."""
    common = yard.repo / ".git"
    git = Git(cwd=common, git_dir=common, environ=yard.environ)
    for name in ("topic/one", "topic/two/three", "topical", "alone"):
        yard.git("branch", name)
    yard.git("pack-refs", "--all", "--prune")
    yard.git("commit", "--allow-empty", "-q", "-m", "more")
    yard.git("branch", "-f", "topic/one")
    (common / "refs/heads/topic/four.lock").write_text("", encoding="ascii")
    for top in ("refs/heads/topic", "refs/heads/alone", "refs/heads/none"):
        assert on_disk.refs(common, top) == git.refs(top), top
    assert len(git.refs("refs/heads/topic")) == 2
    (common / "refs/heads/topic/link").symlink_to(common / "refs/heads/topical")
    assert on_disk.refs(common, "refs/heads/topic") is None


def test_one_ref_is_what_git_says(yard: Yard) -> None:
    """A ref is found by its full name, also if the repository forbids the removal of objects, as
    perdure's clone cache does. In a layout that only git understands, git is asked."""
    repository = Git(cwd=yard.repo, git_dir=yard.repo / ".git", environ=yard.environ)
    head = yard.git("rev-parse", "HEAD")
    yard.git("config", "core.repositoryFormatVersion", "1")
    for setting in ("extensions.preciousObjects", "extensions.worktreeConfig"):
        yard.git("config", setting, "true")
        known = on_disk.refs(yard.repo / ".git", "refs/heads/main")
        assert known == (None if "worktree" in setting else {"refs/heads/main": head})
        assert repository.ref("refs/heads/main") == head
        assert repository.ref("refs/heads/mai") == ""


def test_a_checkout_is_found_as_git_finds_it(yard: Yard) -> None:
    """A checkout is found from a subdirectory. For a linked worktree, a bare repository and files
    of another user, git itself is asked."""
    below, linked, bare = yard.repo / "a/b", yard.top / "linked", yard.top / "bare.git"
    below.mkdir(parents=True)
    for start in (yard.repo, below):
        assert on_disk.repository(start) == yard.repo / ".git"
    yard.git("worktree", "add", "-q", "--detach", str(linked))
    yard.git("clone", "-q", "--bare", str(yard.repo), str(bare))
    for start in (linked, bare, bare / "refs", yard.repo / ".git", yard.repo / ".git/refs"):
        assert on_disk.repository(start) is None, start
    yard.git("config", "core.worktree", "/")
    assert on_disk.repository(yard.repo) is None
    yard.git("config", "--unset", "core.worktree")
    if os.geteuid() == 0:
        os.chown(yard.repo, 12345, -1)
        assert on_disk.repository(yard.repo) is None


@pytest.mark.parametrize(
    "change",
    [
        _pipe,
        _link,
        _write("HEAD", "ref: refs/heads/.invalid\n"),
        _write("HEAD", "ref: refs/heads/../../packed-refs\n"),
        _write("HEAD", "ref: refs/heads/unborn\n"),
        _write("HEAD", "ref: refs/remotes/origin/main\n"),
        _write("HEAD", "ref:\trefs/heads/main\n"),
        _write("HEAD", "nonsense\n"),
        _write("refs/heads/main", "ref: refs/heads/other\n"),
        _write("refs/heads/main", ""),
        _append("[extensions]\n\trefStorage = reftable\n"),
        _append("[include]\n\tpath = more\n"),
        _append("[core]\n\trepositoryFormatVersion = 7\n"),
        _append("non sense\n"),
        _append('[core]\n\teditor = "vi\n'),
        _append("[core]\n\teditor = vi \\\n -u NONE\n"),
    ],
)
def test_anything_unusual_is_left_to_git(yard: Yard, change: Callable[[Path], None]) -> None:
    """For an unknown format, a link, a pipe, and a name that leads out of the branches, git itself
    is asked."""
    git_dir = yard.repo / ".git"
    change(git_dir)
    assert on_disk.head(git_dir) is None


def test_the_users_name_is_what_git_says(yard: Yard) -> None:
    """The name in the repository's configuration has precedence over the user's. If a value is
    quoted, escaped or included, git itself is asked."""
    own, git_dir = yard.top / "home/.gitconfig", yard.repo / ".git"
    git = Git(cwd=yard.repo, environ=yard.environ)
    assert on_disk.user(git_dir, own) == git.user()
    yard.git("config", "user.email", "here@example.org")
    assert on_disk.user(git_dir, own) == git.user()
    assert git.user()["user.email"] == "here@example.org"
    yard.git("config", "user.name", 'A "quoted" name # here')
    assert on_disk.user(git_dir, own) is None
    assert Git(cwd=yard.repo, git_dir=git_dir, environ=yard.environ).user()["user.name"] == (
        'A "quoted" name # here'
    )
    yard.git("config", "--unset", "user.name")
    assert on_disk.user(git_dir, own) == git.user()
    with own.open("a", encoding="utf-8") as file:
        file.write('[includeIf "gitdir:/"]\n\tpath = other\n')
    assert on_disk.user(git_dir, own) is None
    assert on_disk.user(None, yard.top / "none") == {}


def test_a_program_is_asked_once_for_its_version(yard: Yard, tmp_path: Path) -> None:
    """The version of a program is stored for exactly this file. For a script, which may start any
    git, it is never stored."""
    memory, path = tmp_path / "memory", os.environ["PATH"]
    # Each call has another spelling of PATH, because within one process each program is asked only
    # once.
    assert require(f"{path}:/first", memory)
    known = memory.read_text(encoding="ascii")
    memory.write_text("of another program\n", encoding="ascii")
    assert require(f"{path}:/second", memory)
    assert memory.read_text(encoding="ascii") == known
    place = tmp_path / "bin"
    place.mkdir()
    (place / "git").write_text("#!/bin/sh\necho git version 2.99.0\n", encoding="utf-8")
    (place / "git").chmod(0o755)
    memory.unlink()
    assert require(str(place), memory)
    assert not memory.exists()
