"""Hostile repositories, photographed and put back: nothing that was planted runs, in any backend, filters included."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from tests.safety.test_vectors import ground
from tests.safety.vectors import VECTORS, Vector
from tests.workspace.yard import Yard, make_yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_nothing_fires(yard: Yard, vector: Vector) -> None:
    """A checkpoint, another after a change, the drift and the way back run no program of the repository; plain git does."""
    place, workspace = ground(yard, "worktree")
    vector.plant(place)
    place.canary.unlink(missing_ok=True)
    with contextlib.suppress(PerdureError):  # Some make the repository unreadable.
        first = yard.workspaces.save(workspace, 1)
        (place.top / "src/file3.txt").write_text("agent\n")
        yard.workspaces.save(workspace, 2)
        yard.workspaces.drift(workspace, first.commit)
        yard.workspaces.put_in_place(workspace, first.commit)
    assert not place.canary.exists()
    vector.spring(place)
    assert place.canary.exists(), "the fixture could not have fired"


def test_nothing_fires_with_all_of_them_at_once(yard: Yard) -> None:
    """The same for an isolated workdir in which everything is planted that leaves its git directory readable."""
    place, workspace = ground(yard, "isolated")
    for vector in VECTORS:
        if "commondir" not in vector.name and vector.name != "promisor":
            with contextlib.suppress(OSError, AssertionError):
                vector.plant(place)
    place.canary.unlink(missing_ok=True)
    first = yard.workspaces.save(workspace, 1)
    (place.top / "README").write_text("agent\n")
    assert yard.workspaces.put_in_place(workspace, first.commit).differs == ()
    assert not place.canary.exists()
