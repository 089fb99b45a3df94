"""Names of workdirs: readable, safe on every file system, and never shared by two tasks."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import InUse, WorkspaceError
from perdure.model import Backend, TaskSpec, Workspace
from perdure.workspace import Workspaces, layout
from perdure.workspace.identity import Places, identify, workdir_name
from tests.workspace.yard import Yard, make_yard

SAFE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*--[a-z0-9]+(-[a-z0-9]+)*-[a-z2-7]{6}")


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return make_yard(tmp_path)


def worked(yard: Yard, workspace: Workspace) -> None:
    """Take the workdir's lock and make the workdir, as an attempt does."""
    fd = yard.workspaces.lock(workspace)
    try:
        yard.workspaces.prepare(workspace, "claude")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("repo", "branch", "words"),
    [
        ("/home/ada/shop", "perdure/greeting", "shop--greeting"),
        ("https://forge.example/team/Web.Shop", "Fix/Rounding_2", "web-shop--fix-rounding-2"),
        ("ssh://git@forge.example/team/shop.git", "main", "shop--main"),
        ("forge.example:shop", "main", "shop--main"),
        ("/srv/caf\u00e9", "perdure/a", "cafe--a"),
        ("/srv/\u043c\u0430\u0433", "perdure/a", "repo--a"),
        ("/srv/bad\nname\udcff", "perdure/--", "bad-name--task"),
        ("/", "perdure/" + "a" * 190, "repo--" + "a" * 24),
        ("/srv/" + "long-name-" * 20, "perdure/x.lock", "long-name-long-n--x-lock"),
    ],
)
def test_a_name_says_repository_and_task(repo: str, branch: str, words: str) -> None:
    """A workdir's name keeps from repository and task only characters that are safe in every file
    system and shell. A hash follows."""
    identity = identify(repo, branch)
    assert workdir_name(repo, branch, identity, 6) == f"{words}-{identity[:6]}"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_a_name_is_safe_whatever_it_is_made_of(repo: str, branch: str) -> None:
    """From hostile, empty, long and non-ASCII names, a name of at most 49 plain characters is made.
    It is no path and no option, it is not hidden, and two names never differ only in case."""
    name = workdir_name(repo, branch, identify("x"), 6)
    assert SAFE.fullmatch(name) and len(name) <= 16 + 2 + 24 + 1 + 6


def test_a_workdir_is_where_its_name_says(yard: Yard) -> None:
    """The path that was planned does not change when the workdir is made. The list of workdirs has
    it."""
    planned = yard.plan("worktree", branch="perdure/greeting")
    path = Path(planned.path)
    assert path == yard.root / f".perdure/work/repo--greeting-{planned.id[:6]}"
    worked(yard, planned)
    assert yard.plan("worktree", branch="perdure/greeting") == planned
    (thing,) = [each for each in yard.workspaces.contents() if each.path == path]
    assert (thing.kind, thing.id) == ("workdir", planned.id)


def test_two_tasks_of_one_short_name_share_no_workdir(yard: Yard) -> None:
    """A name that belongs to another task is replaced by a longer one. If two were planned at the
    same time, the second task is refused before it touches the first one's files."""
    mine = yard.plan("worktree", branch="one")
    other = Workspace(
        id=mine.id[:6] + "q" * 20, path=mine.path, backend=mine.backend, repo=mine.repo
    )
    worked(yard, mine)
    with pytest.raises(WorkspaceError, match="belongs to another task"):
        yard.workspaces.lock(other)
    chosen = layout.choose_directory(Places(yard.root), mine.repo, "one", other.id)
    assert chosen.name == f"repo--one-{other.id[:12]}"
    assert layout.choose_directory(Places(yard.root), mine.repo, "one", mine.id) == Path(mine.path)


def test_only_one_of_many_gets_a_name(tmp_path: Path) -> None:
    """Eight processes claim one name for eight tasks at the same moment. One of them gets it."""
    places = Places(tmp_path)
    path = str(places.work("shop--one-abcdef"))
    children = []
    for number in range(8):
        pid = os.fork()
        if not pid:
            mine = Workspace(id=f"id{number}", path=path, backend=Backend.WORKTREE, repo="/shop")
            try:
                layout.claim(places, mine)
            except WorkspaceError:
                os._exit(1)
            os._exit(0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert sorted(codes) == [0] + [1] * 7


@pytest.mark.parametrize("left", ["a workdir", "a lock"])
def test_an_identity_keeps_the_workdir_of_an_older_perdure(yard: Yard, left: str) -> None:
    """If an older perdure made the workdir, and even if the workdir is in the trash now, its path
    stays, because conversations are bound to it."""
    identity = yard.plan("worktree").id
    places = Places(yard.root)
    there = places.work(identity) if left == "a workdir" else places.lock(identity)
    there.parent.mkdir(parents=True)
    (there.mkdir if left == "a workdir" else there.touch)()
    planned = yard.plan("worktree")
    assert planned.path == str(places.work(identity))
    worked(yard, planned)
    assert yard.plan("worktree") == planned
    (thing,) = [each for each in yard.workspaces.contents() if each.kind == "workdir"]
    assert (thing.path, thing.id) == (Path(planned.path), identity)


def test_a_directory_of_the_users_claims_no_name(yard: Yard) -> None:
    """A run with --here may work in one of perdure's own workdirs, because a directory of the user
    claims no name."""
    planned = yard.plan("worktree")
    worked(yard, planned)
    here = Workspaces(yard.root, environ=yard.environ).plan(
        TaskSpec(prompt="p", here=planned.path), "other", yard.repo
    )
    os.close(yard.workspaces.lock(here))


def test_an_identity_that_is_claimed_meanwhile_keeps_one_workdir(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process chooses a name, another one claims a name for the same identity and locks
    the workdir. The first process then uses that name."""
    first = yard.plan("worktree")
    looked = layout.read

    def late(path: Path) -> str:
        found = looked(path)
        monkeypatch.setattr(layout, "read", looked)
        os.close(yard.workspaces.lock(first))
        return found

    monkeypatch.setattr(layout, "read", late)
    assert yard.plan("worktree") == first


def test_a_claim_counts_more_than_a_directory_of_the_old_name(yard: Yard) -> None:
    """If a name is claimed, a directory that appears at the old path changes nothing and is not
    used. The refusal names the claimed path."""
    planned = yard.plan("worktree")
    worked(yard, planned)
    old = Places(yard.root).work(planned.id)
    old.mkdir()
    assert yard.plan("worktree") == planned
    beside = Workspace(
        id=planned.id, path=str(old), backend=planned.backend, repo=planned.repo, branch="task"
    )
    with pytest.raises(WorkspaceError, match=re.escape(planned.path)):
        yard.workspaces.lock(beside)
    assert yard.workspaces.conflict(beside) and not yard.workspaces.conflict(planned)


def test_what_owner_files_hold_is_read_with_care(yard: Yard) -> None:
    """A line break after the identity in an owner file does not matter. If no name is free, the
    error names one of these files."""
    planned = yard.plan("worktree", branch="one")
    places = Places(yard.root)
    files = [
        places.owner(workdir_name(planned.repo, "one", planned.id, chars)) for chars in (6, 12, 26)
    ]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    files[0].write_text(f"{planned.id}\n")
    assert yard.plan("worktree", branch="one") == planned
    os.close(yard.workspaces.lock(planned))
    places.lock(planned.id).unlink()
    for file in files:
        file.write_text("something else")
    with pytest.raises(WorkspaceError, match=re.escape(str(files[-1]))):
        yard.plan("worktree", branch="one")


def test_a_claim_that_cannot_be_written_leaves_nothing(yard: Yard) -> None:
    """If a claim cannot be written, the refusal names the file, and no part of it is left."""
    planned = yard.plan("worktree")
    file = Places(yard.root).owner(Path(planned.path).name)
    (file / "in the way").mkdir(parents=True)
    with pytest.raises(WorkspaceError, match=f"{re.escape(str(file))} cannot be written"):
        yard.workspaces.lock(planned)
    assert not list(file.parent.glob("*.new"))


def test_a_name_is_claimed_through_a_link_to_the_root(yard: Yard, tmp_path: Path) -> None:
    """A name is claimed even if the root is given by another path that leads to the same
    directory."""
    planned = yard.plan("worktree")
    yard.root.mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(yard.root)
    places = Places(tmp_path / "link")
    layout.claim(places, planned)
    assert places.owner(Path(planned.path).name).read_text() == planned.id


def test_a_holder_that_is_hidden_lives(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder of the lock that may not be queried counts as alive."""
    planned = yard.plan("worktree")
    fd = yard.workspaces.lock(planned, "perdure run")
    note = json.loads(os.pread(fd, 4096, 0))
    os.pwrite(fd, json.dumps(note | {"pid": 1 << 30}).encode(), 0)

    def refused(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(InUse, match="which has ended"):
        yard.workspaces.lock(planned)
    monkeypatch.setattr(os, "kill", refused)
    with pytest.raises(InUse) as error:
        yard.workspaces.lock(planned)
    assert "perdure run" in str(error.value) and "which has ended" not in str(error.value)
    os.close(fd)
