"""Checkpoints on a full disk, of unreadable files, and of files that shrink while they are read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import spread
from tests.workspace.test_photograph import made
from tests.workspace.yard import BACKENDS, REPOSITORIES, Yard


@pytest.mark.parametrize("backend", [*REPOSITORIES, "task"])
def test_a_full_disk(tmp_path: Path, backend: str) -> None:
    """If the disk is full at any point of a save or a restore, there is one sentence, nothing
    incomplete is published, and no file is lost. With enough space the same operation succeeds."""
    words = [
        "unshare",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-m",
        "tests.workspace.hardship",
        "full",
        str(tmp_path / "disk"),
        backend,
    ]
    # The disk of this test is one file system, so that it can be full.
    environ = os.environ | {spread.SWITCH: "0"}
    done = subprocess.run(words, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_nobody_may_read(tmp_path: Path, backend: str) -> None:
    """Files that the agent made unreadable for itself are left out by name and never touched. All
    others are saved. When they are readable again, they are saved too."""
    words = [
        sys.executable,
        "-m",
        "tests.workspace.hardship",
        "unreadable",
        str(tmp_path / "yard"),
        backend,
    ]
    # The disk of this test is one file system, so that it can be full.
    environ = os.environ | {spread.SWITCH: "0"}
    done = subprocess.run(words, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_file_that_shrinks(yard: Yard) -> None:
    """A large file is truncated and filled again all the time. Yet the checkpoint is made, with all
    other files. When the file stays unchanged, it is saved."""
    workspace, top = made(yard, "worktree")
    busy, over = top / "busy", threading.Event()

    def cut() -> None:
        while not over.is_set():
            busy.write_bytes(b"x" * (8 << 20))
            with busy.open("r+b") as file:
                file.truncate(1)

    writer = threading.Thread(target=cut)
    writer.start()
    try:
        for number in range(1, 5):
            (top / "quiet").write_text(f"{number}\n")
            saved = yard.workspaces.checkpoints.save(workspace, number)
            assert yard.git("show", f"{saved.commit}:worktree/quiet") == str(number)
    finally:
        over.set()
        writer.join()
    busy.write_text("at rest\n")
    assert (
        yard.git("show", f"{yard.workspaces.checkpoints.save(workspace, 9).commit}:worktree/busy")
        == "at rest"
    )
    yard.git("fsck", "--no-dangling")
