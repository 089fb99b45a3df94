"""The first checkpoint of a worktree begins with the index of the checkout. It has the same content
as a checkpoint for which every file is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.model import Workspace
from perdure.workspace.worktree import CHECKOUT, CHECKOUT_INDEX
from tests.workspace.yard import Yard


def made(yard: Yard) -> tuple[Workspace, Path, Path]:
    """Make a worktree, and return it with its directory and its admin directory."""
    workspace = yard.plan("worktree")
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    return workspace, top, Path(yard.git("rev-parse", "--absolute-git-dir", cwd=top))


def tree(yard: Yard, workspace: Workspace, number: int) -> str:
    """Save a checkpoint, and return the id of everything in it."""
    saved = yard.workspaces.checkpoints.save(workspace, number)
    return yard.git("rev-parse", f"{saved.commit}^{{tree}}")


def nothing(yard: Yard, top: Path) -> None:
    pass


def same_size_and_time(yard: Yard, top: Path) -> None:
    path = top / "src/file1.txt"
    seen = path.stat()
    path.write_text("x\n" * 20)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def modes(yard: Yard, top: Path) -> None:
    (top / "src/file1.txt").chmod(0o600)
    (top / "src/file2.txt").chmod(0o755)


def other_kinds(yard: Yard, top: Path) -> None:
    (top / "src/file1.txt").unlink()
    (top / "src/file2.txt").unlink()
    (top / "src/file2.txt").symlink_to("file3.txt")
    (top / "src/file3.txt").unlink()
    (top / "src/file3.txt").mkdir()
    (top / "src/file3.txt/new").write_text("new")
    (top / "a\nb").write_text("x")
    (top / "quiet.log").write_text("ignored")
    (top / "empty").mkdir()


def staged(yard: Yard, top: Path) -> None:
    (top / "README").write_text("third\n")
    yard.git("add", "README", cwd=top)
    (top / "README").write_text("fourth\n")


def committed(yard: Yard, top: Path) -> None:
    (top / "README").write_text("third\n")
    yard.git("commit", "-qam", "third", cwd=top)
    (top / "src/file1.txt").write_text("later\n")


def hidden(yard: Yard, top: Path) -> None:
    yard.git("update-index", "--assume-unchanged", "README", cwd=top)
    yard.git("update-index", "--skip-worktree", "src/file1.txt", cwd=top)
    (top / "README").write_text("third\n")
    (top / "src/file1.txt").write_text("later\n")


def sparse(yard: Yard, top: Path) -> None:
    yard.git("sparse-checkout", "set", "src", cwd=top)


def no_index(yard: Yard, top: Path) -> None:
    Path(yard.git("rev-parse", "--absolute-git-dir", cwd=top), "index").unlink()


CHANGES = (
    *(nothing, same_size_and_time, modes, other_kinds, staged, committed, hidden),
    *(sparse, no_index),
)


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_equal_to_one_that_reads_every_file(
    yard: Yard, change: Callable[[Yard, Path], None]
) -> None:
    """However the agent changes the worktree, the checkpoint equals one that is made without the
    index of the checkout and without any earlier checkpoint."""
    workspace, top, admin = made(yard)
    assert (admin / CHECKOUT).exists()
    change(yard, top)
    first = tree(yard, workspace, 1)
    assert not (admin / CHECKOUT).exists() and not (admin / CHECKOUT_INDEX).exists()
    for kept in yard.root.rglob("looks"):
        shutil.rmtree(kept)
    assert tree(yard, workspace, 2) == first


def setting(yard: Yard) -> None:
    yard.git("config", "core.autocrlf", "true")


def included_setting(yard: Yard) -> None:
    yard.git("config", "include.path", "more")
    (yard.repo / ".git/more").write_text("[core]\n\tautocrlf = true\n")


def attributes_of_the_repository(yard: Yard) -> None:
    (yard.repo / ".git/info").mkdir(exist_ok=True)
    (yard.repo / ".git/info/attributes").write_text("*.txt eol=crlf\n")


def attributes(yard: Yard) -> None:
    (yard.repo / ".gitattributes").write_text("*.txt text EOL=lf\n*.txt text eol=crlf\n")


def attributes_below(yard: Yard) -> None:
    (yard.repo / "src/.gitattributes").write_text("*.txt text eol=crlf\n")


def as_if_slow(admin: Path) -> None:
    """Set the time of the index as if the files had been written seconds before it. git reads a
    file again that is as new as the index."""
    seen = (admin / "index").stat()
    os.utime(admin / "index", ns=(seen.st_atime_ns, seen.st_mtime_ns + 10**10))
    if (admin / CHECKOUT).exists():
        head, size, _ = (admin / CHECKOUT).read_text().split()
        (admin / CHECKOUT).write_text(f"{head} {size} {seen.st_mtime_ns + 10**10}\n")


@pytest.mark.parametrize(
    "convert",
    [setting, included_setting, attributes_of_the_repository, attributes, attributes_below],
)
def test_files_that_git_converted_are_saved_as_they_are(
    yard: Yard, convert: Callable[[Yard], None]
) -> None:
    """If git wrote files with other line ends than their blobs have, the first checkpoint has the
    bytes of the files."""
    convert(yard)
    yard.git("add", ".")
    yard.git("commit", "-q", "--allow-empty", "-m", "attributes")
    workspace, top, admin = made(yard)
    as_if_slow(admin)
    assert b"\r\n" in (top / "src/file1.txt").read_bytes()
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    (top / "src/file1.txt").unlink()
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert b"\r\n" in (top / "src/file1.txt").read_bytes()


@pytest.mark.parametrize("content", [b"", b"DIRC", b"no index at all", None])
def test_an_index_that_was_overwritten_is_not_used(yard: Yard, content: bytes | None) -> None:
    """A program may write into the index's file instead of replacing it. Then every file is read.
    None: the end of the file is cut off, and its time is set back."""
    workspace, top, admin = made(yard)
    seen = (admin / "index").stat()
    with (admin / "index").open("r+b") as file:
        if content is None:
            file.truncate(seen.st_size - 100)
        else:
            file.truncate(0)
            file.write(content)
    os.utime(admin / "index", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    (admin / CHECKOUT).write_text(
        f"{yard.git('rev-parse', 'HEAD')} {(admin / 'index').stat().st_size} {seen.st_mtime_ns}\n"
    )
    (admin / "index").unlink()
    yard.git("reset", "-q", cwd=top)
    first = tree(yard, workspace, 1)
    for kept in yard.root.rglob("looks"):
        shutil.rmtree(kept)
    assert tree(yard, workspace, 2) == first
