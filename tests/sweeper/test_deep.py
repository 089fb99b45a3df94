"""Directories nested so deeply that neither `os.walk` of Python 3.11 nor `shutil.rmtree` can enter
them. An agent makes them with a loop of a few words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.engine import service
from perdure.engine.sweeper import SweepVerdict
from perdure.host.system.files import remove_tree, walk
from perdure.workspace import trash
from tests import spread
from tests.sweeper.ground import Ground

LEVELS = 1010
LONGEST = 4096
"""Maximum length of a path on Linux, in bytes."""


@pytest.fixture(autouse=True)
def removed(tmp_path: Path) -> Iterator[None]:
    """Remove the test's directory afterwards, because pytest cannot."""
    yield
    spread.unmount(tmp_path)
    remove_tree(tmp_path)
    tmp_path.mkdir()


def nest(top: Path, levels: int = LEVELS, name: str = "d", mode: int = 0o700) -> None:
    """Make directories inside each other, with a file in the innermost one."""
    top.mkdir(parents=True, exist_ok=True)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.fchmod(fd, mode)
    os.close(fd)


@pytest.mark.parametrize("where", ["", "build", "node_modules"])
def test_a_deep_workdir_stops_no_sweep(ground: Ground, where: str) -> None:
    """A sweep decides about the deep workdir and removes the other one. With `rm --force` the deep
    one goes to the trash, and a later sweep can read it there."""
    _, deep = ground.run(name="deep", branch="deep")
    _, other = ground.run(name="other", branch="other")
    if where:
        (deep / ".gitignore").write_text(f".gitignore\n{where}/\n")
    nest(deep / where)
    swept = ground.sweep(days=40)
    assert ground.row(swept, other).verdict is SweepVerdict.TAKE and not other.exists()
    if deep.exists():
        assert ground.row(swept, deep).verdict is SweepVerdict.PERSON
        service.remove(
            ground.engine.store, ground.engine.workspaces, ground.engine.host, "deep", force=True
        )
    (entry,) = [each for each in trash.entries(ground.trash) if each.about["run"] == "deep"]
    assert not deep.exists() and sum(1 for _ in walk(entry.path)) > LEVELS
    ground.sweep(days=400)
    if entry.path.exists():
        trash.purge(entry)
    assert not entry.path.exists() and not list(ground.trash.glob(".*"))


@pytest.mark.parametrize(("levels", "name"), [(LEVELS, "d"), (60, "x" * 200)])
def test_a_deep_entry_can_be_purged(ground: Ground, levels: int, name: str) -> None:
    """Also if its paths are longer than the system allows. A purge that was interrupted is
    finished."""
    top = ground.yard.root / "deep"
    for _ in range(2):
        nest(top, levels, name, mode=0o000)
        (top / "closed").mkdir(mode=0o000)
        # Only root can read it. An entry that cannot be read whole is not purged by a sweep.
        obstacle = "" if os.access(top / "closed", os.R_OK) else "it cannot be read"
        entry = trash.move_to_trash(ground.trash, "deep", [("work", top)], {"unsaved": []})
        if levels * len(name) < LONGEST:
            found = trash.purge_obstacle(trash.find([ground.trash], entry.name))
            assert found.partition(":")[0] == obstacle
        entry.rename(entry.with_name(f".doomed-{entry.name}"))
        trash.finish_purges(ground.trash)
        assert list(ground.trash.iterdir()) == []


def test_removing_follows_no_link(tmp_path: Path) -> None:
    """When a directory is removed, the targets of links stay, even if the directory itself is a
    link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("of the user\n")
    top = tmp_path / "top"
    nest(top, 2)
    (top / "d/link").symlink_to(outside)
    (top / "d/d/file2").symlink_to(outside / "file")
    remove_tree(top)
    top.symlink_to(outside)
    with pytest.raises(OSError, match=r"directory|levels"):
        remove_tree(top)
    assert (outside / "file").read_text() == "of the user\n" and not list(outside.glob(".*"))


def test_walk_is_the_walk_of_the_library(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "broken").symlink_to(tmp_path / "none")
    found = [(at, sorted(folders), sorted(names)) for at, folders, names in walk(tmp_path)]
    there = [(at, sorted(folders), sorted(names)) for at, folders, names in os.walk(tmp_path)]
    assert sorted(found) == sorted(there)
    errors: list[OSError] = []
    assert list(walk(tmp_path / "none", errors.append)) == [] and len(errors) == 1
    pruned = []
    for at, folders, _ in walk(tmp_path):
        pruned.append(Path(at).name)
        folders[:] = [name for name in folders if name != "a"]
    assert "b" not in pruned
