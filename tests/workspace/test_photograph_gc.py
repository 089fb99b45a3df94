"""Another git process cleans the repository up while a checkpoint is published. Nothing of the
checkpoint is lost, and nothing unneeded is left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from perdure.workspace import Workspaces
from tests.workspace.test_photograph import made
from tests.workspace.yard import Yard


@pytest.mark.parametrize("cleaning", ["prune --expire=now", "gc --quiet --prune=now"])
def test_a_gc_at_the_last_moment_takes_nothing(yard: Yard, cleaning: str) -> None:
    """Just before the checkpoint's ref is written, the user's git deletes everything that no ref
    names. The checkpoint is still complete, the repository passes its own check, and no pack keeps
    its `.keep` mark."""
    workspace, top = made(yard, "worktree")
    real, place = shutil.which("git"), yard.top / "bin"
    common = yard.repo / ".git"
    place.mkdir()
    first = f"{real} --git-dir={common} {cleaning}; echo done >> {yard.top}/cleaned"
    (place / "git").write_text(
        f'#!/bin/sh\ncase "$*" in *" update-ref --stdin") {first};; esac\nexec {real} "$@"\n'
    )
    (place / "git").chmod(0o755)
    watched = Workspaces(
        yard.root, environ=yard.environ | {"PATH": f"{place}:{os.environ['PATH']}"}
    )
    for number in (1, 2):
        for name in ("one", "two", "three"):
            (top / f"{name}.txt").write_text(f"{name} {number}\n")
        saved = watched.checkpoints.save(workspace, number)
    assert (yard.top / "cleaned").read_text().count("done") >= 2
    assert yard.git("--git-dir", str(common), "show", f"{saved.commit}:worktree/one.txt") == "one 2"
    yard.git(
        "--git-dir", str(common), "rev-list", "--objects", "--quiet", f"{saved.ref}^{{commit}}"
    )
    yard.git("--git-dir", str(common), "fsck", "--no-dangling", "--no-progress")
    yard.git("--git-dir", str(common), "gc", "--quiet", "--prune=now")
    assert list(Path(common / "objects/pack").glob("*.keep")) == []
    assert list(Path(common / "objects").glob("incoming-*")) == []
