"""The first checkpoint of a worktree begins with the index of the checkout. It has the same content
as a checkpoint for which every file is read."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.model import Workspace
from perdure.workspace import Workspaces
from perdure.workspace.snapshot import checkout
from perdure.workspace.snapshot.checkpoint_repository import CheckpointRepository
from perdure.workspace.worktree import CHECKOUT_INDEX
from tests.workspace.yard import Yard


def made(yard: Yard) -> tuple[Workspace, Path, Path]:
    """Make a worktree, and return it with its directory and its admin directory."""
    workspace = yard.plan("worktree")
    yard.workspaces.prepare(workspace, "claude")
    top = Path(workspace.path)
    return workspace, top, Path(yard.git("rev-parse", "--absolute-git-dir", cwd=top))


def note_of(yard: Yard, workspace: Workspace) -> Path:
    return yard.root / ".perdure/locks" / f"{workspace.id}.checkout"


def commit(yard: Yard, *names: str) -> None:
    """Commit these files of the repository, even if it ignores them."""
    yard.git("add", "--force", *names)
    yard.git("commit", "-qm", "more")


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


def committed_although_ignored(yard: Yard, top: Path) -> None:
    (top / "node_modules/new.js").write_text("new\n")
    yard.git("add", "--force", "node_modules/new.js", cwd=top)
    yard.git("commit", "-qm", "vendored", cwd=top)


def untracked(yard: Yard, top: Path) -> None:
    yard.git("rm", "-rq", "--cached", "node_modules", cwd=top)
    yard.git("commit", "-qm", "untracked", cwd=top)


def link_for_an_ignored_directory(yard: Yard, top: Path) -> None:
    shutil.move(top / "node_modules", yard.top / "shared")
    (top / "node_modules").symlink_to(yard.top / "shared")


def link_for_a_directory(yard: Yard, top: Path) -> None:
    (top / "src").rename(top / "moved")
    (top / "src").symlink_to("moved")


CHANGES = (
    *(nothing, same_size_and_time, modes, other_kinds, staged, committed, hidden),
    *(sparse, no_index, committed_although_ignored, untracked),
    *(link_for_an_ignored_directory, link_for_a_directory),
)


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_equal_to_one_that_reads_every_file(
    yard: Yard, change: Callable[[Yard, Path], None]
) -> None:
    """However the agent changes the worktree, the checkpoint equals one that is made without the
    index of the checkout and without any earlier checkpoint."""
    (yard.repo / "node_modules").mkdir()
    (yard.repo / "node_modules/own.js").write_text("own\n")
    (yard.repo / ".gitignore").write_text("node_modules\n*.log\n")
    commit(yard, "node_modules", ".gitignore")
    workspace, top, admin = made(yard)
    note = note_of(yard, workspace)
    one_file_system = top.stat().st_dev == admin.stat().st_dev
    assert note.exists() == one_file_system
    change(yard, top)
    first = tree(yard, workspace, 1)
    assert not note.exists() and not (admin / CHECKOUT_INDEX).exists()
    for kept in yard.root.rglob("looks"):
        shutil.rmtree(kept)
    assert tree(yard, workspace, 2) == first


def test_files_staged_while_the_index_is_read(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent stages a file in the moment in which the first checkpoint begins. What it staged is
    in the checkpoint."""
    workspace, top, _ = made(yard)
    forget = checkout.forget_checkout

    def stage(repo: CheckpointRepository) -> None:
        staged(yard, top)
        forget(repo)

    monkeypatch.setattr(checkout, "forget_checkout", stage)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert yard.git("show", f"{saved.commit}:index/README") == "third"
    assert yard.git("show", f"{saved.commit}:worktree/README") == "fourth"


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


def large_setting(yard: Yard) -> None:
    with (yard.repo / ".git/config").open("a") as file:
        for number in range(2_000):
            file.write(f'[branch "topic-{number}"]\n\tremote = origin\n')
        file.write("[core]\n\tautocrlf = true\n")


def linked_attributes(yard: Yard) -> None:
    (yard.repo / ".git/info").mkdir(exist_ok=True)
    (yard.top / "attributes").write_text("*.txt text eol=crlf\n")
    (yard.repo / ".git/info/attributes").symlink_to(yard.top / "attributes")


def attributes_in_a_link(yard: Yard) -> None:
    (yard.repo / ".gitattributes").symlink_to("*.txt text eol=crlf")


def large_attributes(yard: Yard) -> None:
    text = "# a comment\n" * 10_000 + "*.txt text eol=crlf\n"
    (yard.repo / ".gitattributes").write_text(text)


def attributes_below(yard: Yard) -> None:
    (yard.repo / "src/.gitattributes").write_text("*.txt text eol=crlf\n")


def as_if_slow(note: Path, admin: Path) -> None:
    """Set the time of the index as if the files had been written seconds before it. git reads a
    file again that is as new as the index."""
    seen = (admin / "index").stat()
    os.utime(admin / "index", ns=(seen.st_atime_ns, seen.st_mtime_ns + 10**10))
    if note.exists():
        head, _, digest = note.read_text().split()
        note.write_text(f"{head} {seen.st_mtime_ns + 10**10} {digest}\n")


@pytest.mark.parametrize(
    "convert",
    [
        *(setting, included_setting, large_setting, attributes_of_the_repository),
        *(linked_attributes, attributes, attributes_in_a_link, large_attributes, attributes_below),
    ],
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
    as_if_slow(note_of(yard, workspace), admin)
    assert b"\r\n" in (top / "src/file1.txt").read_bytes()
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    (top / "src/file1.txt").unlink()
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert b"\r\n" in (top / "src/file1.txt").read_bytes()


@pytest.mark.parametrize("content", [b"", b"DIRC", b"no index at all"])
def test_an_index_that_was_overwritten_is_not_used(yard: Yard, content: bytes) -> None:
    """A program may write into the index's file instead of replacing it. Then every file is read,
    even if the size and the time in the note are right."""
    workspace, top, admin = made(yard)
    seen = (admin / "index").stat()
    with (admin / "index").open("r+b") as file:
        file.truncate(0)
        file.write(content)
    os.utime(admin / "index", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    (admin / "index").unlink()
    yard.git("reset", "-q", cwd=top)
    first = tree(yard, workspace, 1)
    for kept in yard.root.rglob("looks"):
        shutil.rmtree(kept)
    assert tree(yard, workspace, 2) == first


def test_a_forged_index_is_not_used(yard: Yard) -> None:
    """An agent changes a file, and writes the state of the changed file into the kept index. The
    checkpoint has the changed file."""
    workspace, top, admin = made(yard)
    as_if_slow(note_of(yard, workspace), admin)
    index = (admin / "index").stat()
    (top / "README").write_text("changed\n")
    seen = (top / "README").stat()
    times = (value for at in (seen.st_ctime_ns, seen.st_mtime_ns) for value in divmod(at, 10**9))
    owner = (seen.st_uid, seen.st_gid, seen.st_size)
    state = (*times, seen.st_dev & 0xFFFFFFFF, seen.st_ino & 0xFFFFFFFF, 0o100644, *owner)
    content = bytearray((admin / "index").read_bytes()[:-20])
    struct.pack_into(">10L", content, content.index(b"README\0") - 62, *state)
    (admin / CHECKOUT_INDEX).unlink(missing_ok=True)
    (admin / CHECKOUT_INDEX).write_bytes(content + hashlib.sha1(content).digest())
    os.utime(admin / CHECKOUT_INDEX, ns=(index.st_atime_ns, index.st_mtime_ns))
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert yard.git("show", f"{saved.commit}:worktree/README") == "changed"


def test_a_pipe_in_place_of_the_index(yard: Yard) -> None:
    """A pipe at the index's path is not waited for."""
    workspace, _, admin = made(yard)
    (admin / CHECKOUT_INDEX).unlink(missing_ok=True)
    os.mkfifo(admin / CHECKOUT_INDEX)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    assert yard.git("show", f"{saved.commit}:worktree/README") == "second"


def test_another_file_system_may_have_another_clock(yard: Yard, elsewhere: Path) -> None:
    """A worktree on another file system than its repository begins without the index."""
    workspaces = Workspaces(elsewhere, environ=yard.environ)
    workspace = workspaces.plan(yard.spec("worktree"), "brave-otter", yard.repo)
    workspaces.prepare(workspace, "claude")
    assert not (elsewhere / ".perdure/locks" / f"{workspace.id}.checkout").exists()
    saved = workspaces.checkpoints.save(workspace, 1)
    assert yard.git("show", f"{saved.commit}:worktree/README") == "second"


def test_a_worktree_that_is_made_again_keeps_nothing(yard: Yard) -> None:
    """A worktree that was lost after a checkpoint is made again. The next checkpoint is right, and
    removes the index of the second checkout, which it does not need."""
    workspace, top, admin = made(yard)
    first = tree(yard, workspace, 1)
    shutil.rmtree(top)
    yard.workspaces.prepare(workspace, "claude")
    again = tree(yard, workspace, 2)
    assert again == first
    assert not note_of(yard, workspace).exists() and not (admin / CHECKOUT_INDEX).exists()


def test_a_tree_with_old_modes_is_restored(yard: Yard) -> None:
    """Old programs wrote modes such as 100664 into trees. A checkpoint with such a tree is
    restored."""
    blob = yard.git("rev-parse", "HEAD:README")
    content = b"100664 README\0" + bytes.fromhex(blob)
    whole = b"tree %d\0" % len(content) + content
    oid = hashlib.sha1(whole).hexdigest()
    place = yard.repo / ".git/objects" / oid[:2] / oid[2:]
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(zlib.compress(whole))
    yard.git("update-ref", "refs/heads/main", yard.git("commit-tree", "-m", "old", oid))
    workspace, top, _ = made(yard)
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    (top / "README").unlink()
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (top / "README").read_text() == "second\n"
