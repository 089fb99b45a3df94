"""The trash: a restore never deletes an entry's content, and content from another file system is
moved to the trash completely."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import Conflict, NotFound, WorkspaceError
from perdure.model import TaskSpec
from perdure.workspace import trash
from tests.workspace.test_photograph import made
from tests.workspace.yard import Yard


def test_what_was_in_the_way_comes_back(yard: Yard) -> None:
    """A file that a restore moved out of the way stays in the trash as long as the restored file is
    in its place. After that it can be restored itself."""
    workspace, top = made(yard, "worktree")
    (top / ".gitignore").write_text("node_modules/\n")
    (top / "deep").mkdir()
    (top / "deep/place").write_text("a file\n")
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    (top / "deep/place").unlink()
    (top / "deep/place/node_modules").mkdir(parents=True)
    (top / "deep/place/node_modules/work.js").write_text("nowhere else\n")
    yard.workspaces.checkpoints.restore(workspace, saved.commit)
    (entry,) = trash.entries(yard.workspaces.trash)
    with pytest.raises(Conflict, match="exists again"):
        trash.restore(entry)
    (top / "deep/place").unlink()
    assert trash.restore(entry) == [top / "deep/place"]
    assert (top / "deep/place/node_modules/work.js").read_text() == "nowhere else\n"
    assert trash.entries(yard.workspaces.trash) == []


def test_an_entry_of_unknown_origin_stays(yard: Yard) -> None:
    """An entry whose original path is unknown cannot be restored, and stays as it is. So does a
    file that somebody else has put into an entry."""
    entry = yard.workspaces.trash / "leftover-1"
    entry.mkdir(parents=True)
    (entry / "half").write_text("nowhere else\n")
    with pytest.raises(NotFound, match="place of leftover-1 is unknown"):
        trash.restore(trash.find([yard.workspaces.trash], "leftover-1"))
    assert (entry / "half").read_text() == "nowhere else\n"
    work = yard.top / "work"
    work.write_text("work\n")
    put = trash.move_to_trash(yard.workspaces.trash, "known", [("work", work)], {"unsaved": []})
    (put / "beside").write_text("put here by hand\n")
    assert trash.restore(trash.find([yard.workspaces.trash], put.name)) == [work]
    assert work.read_text() == "work\n" and (put / "beside").read_text() == "put here by hand\n"


def test_a_restore_of_a_workdir_on_another_file_system(yard: Yard, elsewhere: Path) -> None:
    """For a workdir that is a directory of the user, a file that is in the way of a restore goes to
    the root's trash, even on another file system."""
    workspace = yard.workspaces.plan(
        TaskSpec(prompt="p", here=str(elsewhere)), "brave-otter", yard.repo
    )
    (elsewhere / "place").write_text("a file\n")
    saved = yard.workspaces.checkpoints.save(workspace, 1)
    (elsewhere / "place").unlink()
    (elsewhere / "place").mkdir()
    subprocess.run(
        ["git", "init", "-q", "--bare", "place/bare.git"],
        cwd=elsewhere,
        env=yard.environ,
        check=True,
    )
    os.mkfifo(elsewhere / "place/pipe")
    restored = yard.workspaces.checkpoints.restore(workspace, saved.commit)
    assert (elsewhere / "place").read_text() == "a file\n" and restored.differs == ()
    assert len(list(yard.workspaces.trash.glob("*/in-the-way/pipe"))) == 1
    yard.workspaces.checkpoints.restore(
        workspace, restored.rescue.commit if restored.rescue else ""
    )
    assert (elsewhere / "place/bare.git/HEAD").is_file()


def test_what_is_written_while_it_is_copied_stays(yard: Yard, elsewhere: Path) -> None:
    """A directory is copied to another file system while another program writes to it. The
    directory is not removed. When no program writes to it any more, it is moved completely."""
    top = elsewhere / "top"
    top.mkdir()
    (top / "growing").write_text("line\n")
    at_work = True

    def write(event: str, about: tuple[object, ...]) -> None:
        """Write whenever a file of the directory is opened, so that the timing does not depend on
        the scheduler."""
        nonlocal at_work
        if at_work and event == "open" and str(about[0]).startswith(str(top)):
            at_work = False
            with (top / "growing").open("a") as file:
                file.write("line\n")
            at_work = True

    sys.addaudithook(write)
    try:
        with pytest.raises(WorkspaceError, match="changed while it was copied"):
            trash.move_to_trash(yard.workspaces.trash, "one", [("workdir", top)], {"unsaved": []})
    finally:
        at_work = False
    there = (top / "growing").read_bytes()
    entry = trash.move_to_trash(yard.workspaces.trash, "two", [("workdir", top)], {"unsaved": []})
    assert (entry / "workdir/growing").read_bytes() == there and not list(elsewhere.iterdir())
