"""Hostile repositories are saved and restored. No planted program runs, in any backend, filters
included."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.model import TaskSpec
from perdure.workspace import Workspaces
from tests.safety.test_vectors import ground
from tests.safety.vectors import VECTORS, Vector
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_nothing_fires(yard: Yard, vector: Vector) -> None:
    """A checkpoint, another one after a change, the report of drift and the restore run no program
    of the repository. Plain git does."""
    place, workspace = ground(yard, "worktree")
    vector.plant(place)
    place.canary.unlink(missing_ok=True)
    with contextlib.suppress(PerdureError):  # Some vectors make the repository unreadable.
        first = yard.workspaces.checkpoints.save(workspace, 1)
        (place.top / "src/file3.txt").write_text("agent\n")
        yard.workspaces.checkpoints.save(workspace, 2)
        yard.workspaces.checkpoints.drift(workspace, first.commit)
        yard.workspaces.checkpoints.restore(workspace, first.commit)
    assert not place.canary.exists()
    vector.spring(place)
    assert place.canary.exists(), "the fixture could not have fired"


def test_nothing_fires_with_all_of_them_at_once(yard: Yard) -> None:
    """The same holds for an isolated workdir with all planted programs together, except for those
    that make its git directory unreadable."""
    place, workspace = ground(yard, "isolated")
    for vector in VECTORS:
        if "commondir" not in vector.name and vector.name != "promisor":
            with contextlib.suppress(OSError, AssertionError):
                vector.plant(place)
    place.canary.unlink(missing_ok=True)
    first = yard.workspaces.checkpoints.save(workspace, 1)
    (place.top / "README").write_text("agent\n")
    assert yard.workspaces.checkpoints.restore(workspace, first.commit).differs == ()
    assert not place.canary.exists()


def nest(yard: Yard, top: Path, canary: Path) -> None:
    """Make repositories inside a workdir: one in which every git command runs a program, one that
    git finds elsewhere, and an honest clone."""
    yard.git("clone", "-q", str(yard.repo), str(top / "honest"))
    yard.git("-C", str(top / "honest"), "config", "user.name", "An Agent")
    for name in ("armed", "elsewhere"):
        yard.git("init", "-q", str(top / name))
        for key in ("core.fsmonitor", "core.pager", "alias.st", "filter.x.clean"):
            yard.git("-C", str(top / name), "config", key, f"touch {canary}")
        hook = top / name / ".git/hooks/post-checkout"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {canary}\n")
        hook.chmod(0o755)
        (top / name / "file").write_text("x\n")
    (top / "elsewhere/.git").rename(top / "elsewhere/innocent")
    (top / "elsewhere/.git").write_text("gitdir: innocent\n")


def touched(yard: Yard, place: Path, canary: Path) -> bool:
    """Return whether the user's git, in any of the repositories, runs the planted program."""
    canary.unlink(missing_ok=True)
    for name in ("honest", "armed", "elsewhere"):
        for words in (("status",), ("checkout", "-q", "-b", "another"), ("add", "."), ("st",)):
            subprocess.run(
                ["git", *words],
                cwd=place / name,
                env=yard.environ,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )
    return canary.exists()


def test_repositories_from_elsewhere_are_disarmed(yard: Yard, tmp_path: Path) -> None:
    """After unpacking on another machine, no repository inside the workdir runs anything when the
    user runs git there. The disarmed files are named, and none of their content is lost. A harmless
    clone is unchanged. The same holds for a second restore."""
    source, canary = yard.plan("isolated"), tmp_path / "canary"
    yard.workspaces.prepare(source, "claude")
    nest(yard, Path(source.path), canary)
    saved = yard.workspaces.checkpoints.save(source, 1)
    honest = (Path(source.path) / "honest/.git/config").read_bytes()
    other, place = Workspaces(tmp_path / "other", environ=yard.environ), tmp_path / "landed"
    place.mkdir()
    target = other.plan(TaskSpec(prompt="p", here=str(place)), "brave-otter", tmp_path)
    with yard.workspaces.checkpoints.pack(source, saved.commit) as packed:
        other.checkpoints.unpack(target, packed.file, packed.facts)
    for _ in range(2):
        restored = other.checkpoints.restore(target, packed.facts.commit)
        assert sorted(note.split(" ")[0] for note in restored.notes) == [
            "'armed/.git/config'",
            "'armed/.git/hooks/post-checkout'",
            "'elsewhere/.git'",
        ]
        assert restored.differs == ()
        assert "fsmonitor" in (place / "armed/.git/config.imported").read_text()
        assert (place / "honest/.git/config").read_bytes() == honest
        assert yard.git("log", "-1", "--format=%s", cwd=place / "honest") == "second"
        assert not touched(yard, place, canary)
    assert touched(yard, Path(source.path), canary), "the fixture could not have fired"
