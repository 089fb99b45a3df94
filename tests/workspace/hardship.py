"""Saves and restores checkpoints on a full disk, and as a user who may not read everything. Each
runs in a separate process; see test_hardship.

`full` mounts a small tmpfs in a mount namespace. `unreadable` runs without root's right to read
files that their modes forbid.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from tests.workspace.test_photograph import made, marks
from tests.workspace.yard import make_yard

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
PR_CAPBSET_DROP = 24
STEP = 96
"""Step by which the disk is enlarged, in KB."""


def full(top: Path, backend: str) -> None:
    """Enlarge the disk step by step, until a save fits and then a restore. Check that every earlier
    failure names the full disk and leaves nothing incomplete."""
    top.mkdir()
    _mount(top, "size=512m")
    yard = make_yard(top / "yard")
    workspace, path = made(yard, backend)
    first = yard.workspaces.checkpoints.save(workspace, 1)
    dice = random.Random(7)
    for number in range(8):
        (path / f"new{number}").write_bytes(dice.randbytes(40_000))
    (path / "README").write_bytes(dice.randbytes(100_000))
    files, failed = marks(path), 0
    for step in range(1, 100):
        _mount(top, f"remount,size={_used_kb(top) + step * STEP // 4}k")
        try:
            second = yard.workspaces.checkpoints.save(workspace, 2)
            break
        except PerdureError as error:
            failed += 1
            _is_told(error)
            assert yard.workspaces.checkpoints.list_saved(workspace) == {1: first.commit}
            assert marks(path) == files
    assert failed, "the disk was never full"
    _mount(top, "remount,size=512m")
    assert yard.workspaces.checkpoints.save(workspace, 3).commit == second.commit
    yard.git("--git-dir", second.git_dir, "fsck", "--full", "--no-dangling")
    for number in range(8):
        (path / f"new{number}").unlink()
    (path / "README").write_text("now\n")
    last, failed = yard.workspaces.checkpoints.save(workspace, 4), 0
    for step in range(1, 100):
        _mount(top, f"remount,size={_used_kb(top) + step * STEP // 4}k")
        try:
            yard.workspaces.checkpoints.restore(workspace, second.commit)
            break
        except PerdureError as error:
            failed += 1
            _is_told(error)
    assert failed, "the disk was never full"
    _mount(top, f"remount,size={_used_kb(top)}k")
    for look in (yard.workspaces.checkpoints.drift, yard.workspaces.checkpoints.restore):
        with pytest.raises(PerdureError) as told:
            look(workspace, last.commit)
        _is_told(told.value)
    _mount(top, "remount,size=512m")
    assert yard.workspaces.checkpoints.restore(workspace, second.commit).differs == ()
    assert marks(path) == files
    yard.workspaces.checkpoints.restore(workspace, last.commit)
    assert (path / "README").read_text() == "now\n"
    print(f"{failed} restores failed and were told")


def _is_told(error: PerdureError) -> None:
    said = str(error).lower()
    assert "space" in said or "write" in said or "unable" in said or "could not" in said, error


def _mount(place: Path, options: str) -> None:
    # Only the given options are set. `mount` would otherwise repeat the options that it finds,
    # among them the owner, which has no name in the user namespace.
    found = ["--options-mode=ignore"] if options.startswith("remount") else ["-t", "tmpfs", "none"]
    subprocess.run(["mount", "-o", options, *found, str(place)], check=True)


def _used_kb(place: Path) -> int:
    seen = os.statvfs(place)
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize // 1024


def unreadable(top: Path, backend: str) -> None:
    """Check that files and directories that the agent made unreadable for itself stay in place and
    are named, and that they are saved when they are readable again."""
    yard = make_yard(top)
    workspace, path = made(yard, backend)
    (path / "known.txt").write_text("known\n")
    (path / "known").mkdir()
    (path / "known/file").write_text("known\n")
    first = yard.workspaces.checkpoints.save(workspace, 1)
    (path / "known.txt").write_text("changed\n")
    (path / "closed.txt").write_text("closed\n")
    (path / "closed").mkdir()
    (path / "closed/file").write_text("closed\n")
    (path / "open.txt").write_text("open\n")
    shut = ("known.txt", "known", "closed.txt", "closed")
    for name in shut:
        (path / name).chmod(0)
    second = yard.workspaces.checkpoints.save(workspace, 2)
    assert {name.rstrip("/") for name, _ in second.left_out} == set(shut), second.left_out
    listed = yard.git("--git-dir", second.git_dir, "ls-tree", "-r", "--name-only", second.commit)
    assert "worktree/open.txt" in listed
    assert "worktree/known/file" in listed
    (path / "open.txt").unlink()
    yard.workspaces.checkpoints.restore(workspace, second.commit)
    assert (path / "open.txt").read_text() == "open\n"
    for name in shut:
        (path / name).chmod(0o755 if (path / name).is_dir() else 0o644)
    assert [(path / name).read_text() for name in ("known.txt", "closed.txt", "known/file", "closed/file")] == [
        "changed\n", "closed\n", "known\n", "closed\n",
    ]  # fmt: skip
    assert yard.workspaces.checkpoints.save(workspace, 3).left_out == ()
    yard.workspaces.checkpoints.restore(workspace, first.commit)
    assert (path / "known.txt").read_text() == "known\n"


if __name__ == "__main__":
    if os.geteuid() == 0 and sys.argv[1] == "unreadable":
        for right in (DAC_OVERRIDE, DAC_READ_SEARCH):
            assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, right, 0, 0, 0) == 0
        if "--stripped" not in sys.argv:
            os.execv(
                sys.executable,
                [sys.executable, "-m", "tests.workspace.hardship", *sys.argv[1:], "--stripped"],
            )
    {"full": full, "unreadable": unreadable}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
