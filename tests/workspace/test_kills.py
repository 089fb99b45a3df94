"""perdure is killed while it makes a workdir. After a retry the workdir is complete. These are
samples; `killing.py` tests more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from perdure.workspace import Workspaces
from tests.workspace.killing import check, command, kill_after, kill_at, killing_yard
from tests.workspace.yard import REPOSITORIES, Yard


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return killing_yard(tmp_path)


@pytest.mark.parametrize("backend", REPOSITORIES)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 9, 14, 40])
def test_a_kill_at_a_system_call_is_made_good_by_a_retry(
    yard: Yard, backend: str, number: int
) -> None:
    """The first process (perdure or one of its gits) that makes the given system call is killed.
    The retry needs no manual step and loses nothing."""
    workspace = yard.plan(backend)
    assert kill_at(yard, workspace, number)
    assert check(yard, workspace) == []


@pytest.mark.parametrize("backend", REPOSITORIES)
@pytest.mark.parametrize("number", range(1, 18, 4))
def test_a_kill_while_a_workdir_is_made_of_a_spare(yard: Yard, backend: str, number: int) -> None:
    """The first process that makes the given system call is killed. Afterwards the workdir has the
    files of its commit, although the spare had those of another one."""
    workspaces = Workspaces(yard.root, environ=yard.environ, spares=1)
    workspaces.prepare(yard.plan(backend, branch="first"), "claude")
    assert workspaces.make_spares() == 1
    (yard.repo / "README").write_text("third\n")
    (yard.repo / "src/file1.txt").unlink()
    yard.git("commit", "-qam", "third")
    workspace = yard.plan(backend)
    assert kill_at(yard, workspace, number)
    assert check(yard, workspace, others=1) == []


@pytest.mark.parametrize("backend", REPOSITORIES)
@pytest.mark.parametrize("all_of_it", [False, True], ids=["supervisor", "machine"])
def test_kills_at_any_time_are_made_good_by_a_retry(
    yard: Yard, backend: str, all_of_it: bool
) -> None:
    """There are three kills in a row. Each kills only the supervisor, whose git continues and holds
    the lock, or everything at once."""
    workspace = yard.plan(backend)
    for seconds in (0.12, 0.2, 0.15):
        kill_after(yard, workspace, seconds, all_of_it=all_of_it)
    assert check(yard, workspace) == []


def test_files_in_a_half_made_worktree_are_moved_and_not_deleted(yard: Yard) -> None:
    """Files that are in the way of the retry are afterwards in the trash, byte for byte."""
    workspace = yard.plan("worktree")
    assert kill_at(yard, workspace, 120)
    top = Path(workspace.path)
    (top / "left-behind").write_text("by somebody\n")
    assert check(yard, workspace) == []
    kept = [path.read_text() for path in yard.root.glob(".perdure/trash/*/worktree/left-behind")]
    assert kept == ["by somebody\n"]


def test_what_a_killed_fetch_left_in_the_cache_is_cleared_away(yard: Yard) -> None:
    """Locks and incomplete packs of an interrupted fetch do not stop the next one, which gets the
    origin's new commits."""
    yard.workspaces.prepare(yard.plan("isolated", branch="before"), "claude")
    cache = next((yard.root / ".perdure/repos").iterdir())
    leftovers = [
        cache / name
        for name in (
            "packed-refs.lock",
            "refs/remotes/origin/main.lock",
            "objects/pack/tmp_pack_1",
            "shallow.lock",
        )
    ]
    for leftover in leftovers:
        leftover.touch()
    (yard.root / f".perdure/locks/{cache.stem}.making").touch()
    yard.git("commit", "--allow-empty", "-qm", "newer")
    assert check(yard, yard.plan("isolated")) == []
    assert not [leftover for leftover in leftovers if leftover.exists()]


def test_a_ref_of_the_cache_is_written_after_the_git_that_wrote_it_was_killed(yard: Yard) -> None:
    """git is killed together with perdure between fetch and checkout, while it holds its lock on
    the ref that pins the workdir's commit. The retry succeeds."""
    workspace, real, place = yard.plan("isolated"), shutil.which("git"), yard.top / "bin"
    place.mkdir()
    lock = f'"${{1#--git-dir=}}/refs/perdure/pin/{workspace.id}.lock"'
    dies = f'mkdir -p "${{1#--git-dir=}}/refs/perdure/pin"; : > {lock}; kill -9 $PPID; kill -9 $$'
    (place / "git").write_text(
        f'#!/bin/sh\ncase "$*" in *refs/perdure/pin/*) {dies};; esac\nexec {real} "$@"\n'
    )
    (place / "git").chmod(0o755)
    environ = os.environ | yard.environ | {"PATH": f"{place}:{os.environ['PATH']}"}
    assert (
        subprocess.run(command(yard, workspace), env=environ, stdout=subprocess.DEVNULL).returncode
        == -signal.SIGKILL
    )
    assert list(yard.root.glob(f".perdure/repos/*/refs/perdure/pin/{workspace.id}.lock"))
    assert check(yard, workspace) == []


@pytest.mark.parametrize(
    ("backend", "slow"),
    [("worktree", "read-tree"), ("isolated", "fetch")],
)
def test_the_retry_waits_for_the_git_of_a_killed_supervisor(
    yard: Yard, backend: str, slow: str
) -> None:
    """git survives when perdure is killed. It still holds perdure's lock on the repository, so no
    other process cleans up while it runs."""
    real, place = shutil.which("git"), yard.top / "bin"
    place.mkdir()
    slowly = (
        f"touch {yard.top}/begun; until test -e {yard.top}/go; do sleep 0.02; done; sleep 0.4; "
        f'{real} "$@"; touch {yard.top}/over'
    )
    (place / "git").write_text(
        f'#!/bin/sh\ncase "$*" in *" {slow} "*) {slowly};; *) exec {real} "$@";; esac\n'
    )
    (place / "git").chmod(0o755)
    workspace = yard.plan(backend)
    environ = os.environ | yard.environ | {"PATH": f"{place}:{os.environ['PATH']}"}
    with subprocess.Popen(
        command(yard, workspace), env=environ, stdout=subprocess.DEVNULL
    ) as supervisor:
        while not (yard.top / "begun").exists():
            assert supervisor.poll() is None, f"git {slow} is not called"
            time.sleep(0.005)
        supervisor.kill()
    assert not (yard.top / "over").exists()
    (yard.top / "go").touch()
    assert check(yard, workspace) == []
    assert (yard.top / "over").exists()
