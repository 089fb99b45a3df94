"""A workdir is saved as a checkpoint and restored: one suite for all ways to make a workdir."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.model import Saved, TaskSpec, Workspace
from perdure.workspace import Workspaces
from tests.workspace.yard import BACKENDS, REPOSITORIES, Yard

Marks = dict[str, tuple[str, bytes]]


def marks(top: Path, *, nested_git: bool = True) -> Marks:
    """Return kind, executable bit and content of every file, link and empty directory, by path,
    without the workdir's own git directory."""
    found: Marks = {}
    for directory, folders, names in os.walk(top):
        here = Path(directory)
        if here == top:
            folders[:] = [name for name in folders if name != ".git"]
            names = [name for name in names if name != ".git"]
        for name in [*names, *(name for name in folders if (here / name).is_symlink())]:
            path = here / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                found[str(path.relative_to(top))] = ("link", os.fsencode(path.readlink()))
            elif stat.S_ISREG(mode):
                found[str(path.relative_to(top))] = (
                    "program" if mode & 0o100 else "file",
                    path.read_bytes(),
                )
        if not folders and not names:
            found[f"{here.relative_to(top)}/"] = ("empty", b"")
    return found


def made(yard: Yard, backend: str, **more: str) -> tuple[Workspace, Path]:
    workspace = yard.plan(backend, **more)
    yard.workspaces.prepare(workspace, "claude")
    return workspace, Path(workspace.path)


def fill(yard: Yard, top: Path) -> None:
    """Make files of all kinds that an agent may leave, with unusual names."""
    for name in (
        "README",
        "new.txt",
        "a\nb",
        "-x",
        "\udcff\udcfe",
        "é",
        "deep/er/f",
        ".git%",
        ".GIT",
        "deep/.git%%",
        ":(top)x",
        "quiet.log",
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(os.fsencode(name) + b"\r\n\0\xff")
    (top / "README").chmod(0o755)
    (top / ".gitmodules").symlink_to("nowhere")
    (top / "link").symlink_to(b"/nonexistent/\xff")
    (top / "empty/inner").mkdir(parents=True)
    (top / "nested").mkdir()
    yard.git("init", "-q", cwd=top / "nested")
    (top / "nested/own.txt").write_text("own\n")
    yard.git("add", ".", cwd=top / "nested")
    yard.git("commit", "-qm", "nested", cwd=top / "nested")
    (top / "half/.git").mkdir(parents=True)
    (top / "half/.git/junk").write_text("no repository")
    (top / ".gitattributes").write_text(
        "* text eol=crlf ident filter=evil working-tree-encoding=UTF-16\n"
    )
    (top / "id.txt").write_text("$Id$\nplain\n")


def wreck(top: Path) -> None:
    """Replace every kind of file by another kind."""
    shutil.rmtree(top / "nested")
    (top / "nested").symlink_to("/nonexistent")
    shutil.rmtree(top / "empty")
    (top / "empty").write_text("a file now")
    shutil.rmtree(top / "deep")
    (top / "link").unlink()
    (top / "link/below").mkdir(parents=True)
    (top / "link/below/f").write_text("x")
    (top / "README").unlink()
    (top / "new.txt").write_text("other\n")
    (top / "new.txt").chmod(0o755)
    (top / "more").mkdir()


@pytest.fixture(params=BACKENDS)
def filled(request: pytest.FixtureRequest, yard: Yard) -> Iterator[tuple[Yard, Workspace, Path]]:
    workspace, top = made(yard, request.param)
    fill(yard, top)
    yield yard, workspace, top


def show(yard: Yard, saved: Saved, *args: str) -> str:
    return yard.git("--git-dir", saved.git_dir, *args)


def test_every_byte_comes_back(filled: tuple[Yard, Workspace, Path]) -> None:
    """After everything was changed, files, modes, links, unusual names, empty directories and
    nested repositories are restored."""
    yard, workspace, top = filled
    before = marks(top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert marks(top) == before
    wreck(top)
    after = marks(top)
    restored = yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert marks(top) == before
    assert (restored.differs, restored.notes) == ((), ())
    assert yard.git("log", "-1", "--format=%s", cwd=top / "nested") == "nested"
    assert restored.rescue is not None
    yard.workspaces.checkpoints.restore(workspace, restored.rescue.commit)
    assert marks(top) == after


def test_the_repository_that_holds_it_is_sound(filled: tuple[Yard, Workspace, Path]) -> None:
    """git's own check finds no error in a repository with a checkpoint. A gc that prunes at once
    removes nothing of the checkpoint."""
    yard, workspace, top = filled
    before = marks(top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    show(yard, saved, "gc", "--quiet", "--prune=now")
    assert (
        show(yard, saved, "fsck", "--full", "--strict", "--no-dangling").replace(
            "notice: HEAD points to an unborn branch (master)", ""
        )
        == ""
    )
    wreck(top)
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert marks(top) == before


def test_an_unchanged_workdir_keeps_its_commit(filled: tuple[Yard, Workspace, Path]) -> None:
    """A second checkpoint of the same state is the same commit with another number. After a change
    the commit is another one."""
    yard, workspace, top = filled
    first = yard.workspaces.checkpoints.save(workspace, 1)
    while int(show(yard, first, "show", "-s", "--format=%ct", first.commit)) == int(time.time()):
        time.sleep(0.02)  # Equal commits within one second are the same by chance.
    second = yard.workspaces.checkpoints.save(workspace, 2)
    (top / "README").write_text("changed again\n")
    third = yard.workspaces.checkpoints.save(workspace, 3)
    assert first.commit == second.commit != third.commit
    assert yard.workspaces.checkpoints.list_saved(workspace) == {
        1: first.commit,
        2: first.commit,
        3: third.commit,
    }
    assert yard.workspaces.checkpoints.drift(workspace, first.commit) == ("README",)
    assert yard.workspaces.checkpoints.drift(workspace, third.commit) == ()
    yard.workspaces.checkpoints.delete(workspace, 1, 2)
    assert yard.workspaces.checkpoints.list_saved(workspace) == {3: third.commit}


def test_special_files_are_named_and_left(filled: tuple[Yard, Workspace, Path]) -> None:
    """A pipe and a socket are neither read nor saved. The checkpoint names them, even if one
    replaced a file."""
    yard, workspace, top = filled
    yard.workspaces.checkpoints.save(workspace, 1)
    os.mkfifo(top / "pipe")
    (top / "new.txt").unlink()
    os.mkfifo(top / "new.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(top)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        saved = yard.workspaces.checkpoints.save(workspace, 2)
    assert sorted(saved.left_out) == [
        ("new.txt", "it is a pipe"),
        ("pipe", "it is a pipe"),
        ("socket", "it is a socket"),
    ]
    assert "worktree/new.txt" not in show(yard, saved, "ls-tree", "-r", "--name-only", saved.commit)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_staged_and_unstaged_stay_apart(yard: Yard, backend: str) -> None:
    """Index, HEAD and branch are restored. A staged file is staged again, even if the workdir has
    other bytes. An intent-to-add entry is restored as such."""
    workspace, top = made(yard, backend)
    (top / "README").write_text("staged\n")
    yard.git("add", "README", cwd=top)
    (top / "README").write_text("not staged\n")
    (top / "later").write_text("later\n")
    yard.git("add", "-N", "later", cwd=top)
    yard.git("rm", "-q", "--cached", "src/file1.txt", cwd=top)
    yard.git("update-index", "--assume-unchanged", "src/file2.txt", cwd=top)
    yard.git("update-index", "--skip-worktree", "src/file3.txt", cwd=top)
    (top / "src/file2.txt").write_text("hidden change\n")

    def standing() -> tuple[str, ...]:
        asked = (
            ("status", "--porcelain=v2", "--branch"),
            ("ls-files", "--stage"),
            ("ls-files", "-v"),
            ("rev-parse", "HEAD"),
        )
        return tuple(yard.git(*words, cwd=top) for words in asked)

    before, files = standing(), marks(top)
    index = Path(yard.git("rev-parse", "--path-format=absolute", "--git-path", "index", cwd=top))
    bytes_before = index.read_bytes()
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert index.read_bytes() == bytes_before
    yard.git("checkout", "-q", "-f", "-b", "elsewhere", cwd=top)
    (top / "src/file9.txt").write_text("moved on\n")
    yard.git("add", "--all", cwd=top)
    yard.git("commit", "-q", "-m", "moved on", cwd=top)
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (standing(), marks(top)) == (before, files)
    assert yard.git("fsck", "--no-dangling", cwd=top) == ""
    assert yard.git("log", "-1", "--format=%s", "elsewhere", cwd=top) == "moved on"


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_pack_makes_a_shallow_repository_elsewhere(
    yard: Yard, backend: str, tmp_path: Path
) -> None:
    """A checkpoint that is unpacked in an empty directory below another root gives the same
    workdir. Its repository is shallow: it has only the run's own commits."""
    workspace, top = made(yard, backend)
    (top / "mine").write_text("committed\n")
    yard.git("add", "mine", cwd=top)
    yard.git("commit", "-qm", "the run's own", cwd=top)
    (top / "secret.env").write_text("TOKEN\n")
    (top / "src/file1.txt").write_text("staged\n")
    yard.git("add", "src/file1.txt", cwd=top)
    fill(yard, top)
    status, files = yard.git("status", "--porcelain", cwd=top), marks(top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    other = Workspaces(tmp_path / "other root", environ=yard.environ)
    (tmp_path / "landed").mkdir()
    there = other.plan(TaskSpec(prompt="p", here=str(tmp_path / "landed")), "brave-otter", tmp_path)
    with yard.workspaces.checkpoints.pack(workspace, saved.commit, ["secret.env"]) as packed:
        other.checkpoints.unpack(there, packed.file, packed.facts)
        assert packed.kept == ()
        restored = other.checkpoints.restore(there, packed.facts.commit)
    assert restored.differs == ()
    assert marks(Path(there.path)) == {
        name: mark for name, mark in files.items() if name != "secret.env"
    }
    assert yard.git("log", "--format=%s", cwd=there.path).split("\n") == ["the run's own", "second"]
    assert yard.git("status", "--porcelain", cwd=there.path) == status.replace(
        "?? secret.env\n", ""
    )
    assert yard.git("symbolic-ref", "HEAD", cwd=there.path) == "refs/heads/work"
    assert yard.git("fsck", "--no-dangling", cwd=there.path) == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_grows_from_a_checkpoint(yard: Yard, backend: str) -> None:
    """Another workdir is made from a checkpoint, with staged and unstaged changes separate, on its
    own branch. The checkpoint's workdir is only read."""
    source, top = made(yard, backend)
    if backend in REPOSITORIES:
        (top / "src/file1.txt").write_text("staged\n")
        yard.git("add", "src/file1.txt", cwd=top)
        (top / "src/file1.txt").write_text("not staged\n")
    fill(yard, top)
    saved, then = yard.workspaces.checkpoints.save(source, 1), marks(top)
    wreck(top)
    now = marks(top)
    target, to = (
        made(yard, backend, branch="fork")
        if backend in REPOSITORIES
        else made(yard, "task", task="t2")
    )
    yard.workspaces.checkpoints.copy_checkpoint(source, saved.commit, target)
    assert (marks(to), marks(top)) == (then, now)
    if backend in REPOSITORIES:
        assert yard.git("symbolic-ref", "HEAD", cwd=to) == "refs/heads/fork"
        assert yard.git("diff", "--cached", "--name-only", cwd=to) == "src/file1.txt"
    yard.workspaces.checkpoints.copy_state(source, target)
    assert (marks(to), marks(top)) == (now, now)


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_locks_of_gits_that_were_killed_stop_nothing(yard: Yard, backend: str) -> None:
    """A killed git leaves its lock file beside a ref or the index. The next save, restore and
    removal of a checkpoint still work."""
    workspace, top = made(yard, backend)
    checkpoints = yard.workspaces.checkpoints
    (top / "new.txt").write_text("then\n")
    then = checkpoints.save(workspace, 1)
    (top / "new.txt").write_text("now\n")
    yard.git("add", "new.txt", cwd=top)
    yard.git("commit", "-qm", "now", cwd=top)
    admin = Path(yard.git("rev-parse", "--absolute-git-dir", cwd=top))
    common = (top / yard.git("rev-parse", "--git-common-dir", cwd=top)).resolve()
    branch = yard.git("symbolic-ref", "HEAD", cwd=top)
    keeper = Path(then.git_dir)
    left = [
        keeper / f"refs/perdure/last/{workspace.id}.lock",
        keeper / f"refs/perdure/checkpoints/{workspace.id}/2.lock",
        *(admin / name for name in ("index.lock", "HEAD.lock")),
        common / f"{branch}.lock",
    ]
    for lock in left:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    checkpoints.save(workspace, 2)
    restored = checkpoints.restore(workspace, then.commit)
    assert (top / "new.txt").read_text() == "then\n" and restored.differs == ()
    assert not any(map(os.path.lexists, left))
    (next(yard.root.rglob(f"shelves/{workspace.id}.git")) / "deleting").touch()
    (keeper / "packed-refs.lock").touch()
    left[1].touch()
    checkpoints.delete(workspace, 2)
    assert list(checkpoints.list_saved(workspace)) == [1]


@pytest.mark.parametrize("backend", REPOSITORIES)
@pytest.mark.parametrize(
    "branch", ["fix/#12", "feature/a+b", "user@x", "_wip", "änderung", "refs/x", "a,b&c;$(d)"]
)
def test_a_branch_of_any_name_comes_back(yard: Yard, backend: str, branch: str) -> None:
    """A checkpoint on any branch that git allows is restored to that branch, and can be compared
    with the workdir."""
    workspace, top = made(yard, backend)
    yard.git("checkout", "-qb", branch, cwd=top)
    (top / "README").write_text("then\n")
    checkpoints = yard.workspaces.checkpoints
    saved = checkpoints.save(workspace, 1)
    yard.git("checkout", "-qb", "elsewhere", cwd=top)
    (top / "README").write_text("now\n")
    assert saved.branch == branch
    assert checkpoints.drift(workspace, saved.commit) == ("README",)
    checkpoints.restore(workspace, saved.commit)
    assert (top / "README").read_text() == "then\n"
    assert yard.git("symbolic-ref", "HEAD", cwd=top) == f"refs/heads/{branch}"


@pytest.mark.parametrize("backend", REPOSITORIES)
def test_a_head_that_names_no_branch_comes_back_detached(yard: Yard, backend: str) -> None:
    """A HEAD that names a ref outside `refs/heads/` is saved as a detached HEAD."""
    workspace, top = made(yard, backend)
    commit = yard.git("rev-parse", "HEAD", cwd=top)
    yard.git("update-ref", "refs/review/1", commit, cwd=top)
    yard.git("symbolic-ref", "HEAD", "refs/review/1", cwd=top)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    yard.git("checkout", "-qb", "elsewhere", cwd=top)
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (saved.branch, yard.git("branch", "--show-current", cwd=top)) == ("", "")
    assert yard.git("rev-parse", "HEAD", cwd=top) == commit
