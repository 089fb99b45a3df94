"""Promises of a task: files that must exist, and conflict marks that must be gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.engine.attempt.verification import missing_files_sentence
from perdure.model import TaskSpec

MARKED = "a\n<<<<<<< 0a1b\nours\n=======\ntheirs\n>>>>>>> 2c3d\n"


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A missing path and a link to nothing are named. A file, a directory and a link to something
    count as existing."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("x")
    (tmp_path / "good").symlink_to("dir/file")
    (tmp_path / "bad").symlink_to("nowhere")
    spec = TaskSpec(prompt="", files=("dir/file", "dir", "good", "bad", "gone", "dir/file/below"))
    assert (
        missing_files_sentence(spec, tmp_path)
        == "the task was to create 'bad', 'gone', 'dir/file/below', which does not exist"
    )
    assert missing_files_sentence(TaskSpec(prompt="", files=("dir/file",)), tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        (MARKED, True),
        (MARKED.replace("\n", "\r\n"), True),
        ("Title\n=======\n", False),
        ("<<<<<<< left\nonly one end\n", False),
        ("resolved\n", False),
    ],
)
def test_marks_are_found(tmp_path: Path, text: str, marked: bool) -> None:
    """A conflict has its two outer marks and the mark in the middle. An underlined heading, or one
    outer mark alone, is text."""
    (tmp_path / "file").write_bytes(text.encode())
    assert missing_files_sentence(TaskSpec(prompt="", conflicts=("file",)), tmp_path) == (
        "conflict marks of a merge are still in 'file'" if marked else ""
    )


def test_odd_things_are_never_waited_for(tmp_path: Path) -> None:
    """A pipe, a directory or a link in place of a conflicted file counts as a file without marks,
    and reading it does not block."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dir").mkdir()
    (tmp_path / "real").write_text(MARKED)
    (tmp_path / "link").symlink_to("real")
    assert (
        missing_files_sentence(
            TaskSpec(prompt="", conflicts=("pipe", "dir", "link", "gone")), tmp_path
        )
        == ""
    )
