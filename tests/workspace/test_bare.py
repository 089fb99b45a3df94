"""The bare repositories by which perdure reads workdirs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from perdure.host.git import Git
from perdure.workspace.bare import make_bare
from tests.workspace.yard import Yard


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere git makes them itself")
@pytest.mark.parametrize("form", ["sha1", "sha256"])
def test_it_is_what_git_would_make(tmp_path: Path, form: str) -> None:
    """A bare repository has the settings, the kind of object ids and the directories that `git
    init` makes. Making it a second time changes nothing."""
    git = Git(cwd=tmp_path, ceiling=tmp_path, environ=dict(os.environ))
    asked = ("init", "--quiet", "--bare", "--template=", f"--object-format={form}", "--", "theirs")
    git.run(*asked)
    make_bare(git, tmp_path / "own", form)
    make_bare(git, tmp_path / "own", form)

    def seen(name: str) -> tuple[list[str], list[str]]:
        repository = git.at(tmp_path, tmp_path / name)
        settings = repository.run("config", "--local", "--list").text.split("\n")
        facts = repository.run("rev-parse", "--is-bare-repository", "--show-object-format").text
        return sorted(settings), facts.split("\n")

    assert seen("own") == seen("theirs")
    blob = git.at(tmp_path, tmp_path / "own").run("hash-object", "-w", "--stdin", stdin=b"a").text
    assert len(blob) == (40 if form == "sha1" else 64)


@pytest.mark.parametrize("name", ["HEAD", "config"])
@pytest.mark.parametrize("text", ["", "\0" * 60], ids=["empty", "zeros"])
def test_what_a_power_cut_left_empty_is_written_again(yard: Yard, name: str, text: str) -> None:
    """If a power cut left a file of perdure's own repository empty, the next checkpoint writes it
    again. Objects in the repository are kept."""
    workspace = yard.plan("isolated")
    yard.workspaces.prepare(workspace, "claude")
    yard.workspaces.checkpoints.save(workspace, 1)
    (made,) = [
        path for path in yard.root.rglob("made") if (path.parent / "info/attributes").exists()
    ]
    (made.parent / name).write_text(text)
    (Path(workspace.path) / "README").write_text("third\n")
    yard.workspaces.checkpoints.save(workspace, 2)
    assert (made.parent / name).read_text().strip("\0")


def test_modes_are_told_where_they_are_kept(tmp_path: Path) -> None:
    """On a file system that does not keep file modes, git itself is asked for the modes."""
    git = Git(cwd=tmp_path, ceiling=tmp_path, environ=dict(os.environ))
    make_bare(git, tmp_path / "own", "sha1")
    kept = git.at(tmp_path, tmp_path / "own").run("config", "core.filemode").text
    assert kept == "true" and not (tmp_path / "own/probe").exists()
