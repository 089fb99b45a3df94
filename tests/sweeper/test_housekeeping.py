"""Housekeeping beside a pool: the daily sweep, the ballast, a message about the disk, and the
clocks of a machine that slept or was moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from perdure.cli.data.housekeeping import Housekeeping
from perdure.engine.sweeper import due, sweeps
from perdure.engine.worker import work
from perdure.errors import Conflict
from perdure.host.volumes import Ballast, Volumes
from perdure.workspace import Workspaces
from tests.patience import PATIENCE_S
from tests.process.agents import until
from tests.sweeper.ground import Ground


def test_a_pool_sweeps_once_a_day(ground: Ground) -> None:
    """`perdure work` sweeps when a sweep is due, and reports it if something was removed or a
    person is needed."""
    _, top = ground.run()
    (top / "new").write_text("x")
    said: list[str] = []
    with Housekeeping(ground.engine, replace(ground.settings, gc_workdirs=0.0), said.append):
        assert said == [] or "swept" in said[0]
    assert said == ["swept: 0 removed; look with: perdure gc --dry-run"]
    assert not due(ground.engine.state)
    with Housekeeping(ground.engine, ground.settings, said.append):
        pass
    assert len(said) == 1


def test_the_word_work_sweeps(ground: Ground) -> None:
    """The real command `perdure work` leaves the record of a sweep, and its exit code does not
    change."""
    ground.run()
    environ = {
        **ground.yard.environ,
        "PERDURE_ROOT": str(ground.yard.root),
        "PERDURE_STATE": str(ground.state),
        "PERDURE_DISK_BALLAST": "1MB",
    }
    done = subprocess.run(
        [sys.executable, "-m", "perdure", "work", "--once"],
        env=environ,
        cwd=ground.yard.repo,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((ground.state / "sweep.json").read_text())["format"] == 1
    assert (ground.state / "ballast").stat().st_size == 1024**2


def test_a_crowded_disk_is_told_once_and_once_when_it_is_well(ground: Ground) -> None:
    """One line says that new work must wait because of the disk, and one that it need not wait any
    more. The ballast is made only when there is space."""
    ballast = Ballast(ground.state, 1024**2)
    tight = Volumes(places=(ground.state,), refuse=100.1, refuse_bytes=2**62, ballast=ballast)
    said: list[str] = []
    keeping = Housekeeping(replace(ground.engine, volumes=tight), ground.settings, said.append)
    for _ in range(3):
        keeping.look()
    assert len(said) == 1 and "nothing new is started" in said[0] and not ballast.path.exists()
    keeping._engine = replace(ground.engine, volumes=replace(tight, refuse=0.0))
    for _ in range(3):
        keeping.look()
    assert len(said) == 2 and "free space again" in said[1] and ballast.path.exists()


def test_nothing_ends_the_housekeeping(ground: Ground) -> None:
    """An unforeseen error is reported, and the next round still runs."""
    again = threading.Event()
    said: list[str] = []

    class Odd:
        asked = 0
        ballast = None

        def crowded(self) -> str:
            self.asked += 1
            if self.asked == 2:
                raise RuntimeError("what nobody foresaw")
            if self.asked == 3:
                again.set()
            return ""

    with Housekeeping(
        replace(ground.engine, volumes=cast(Any, Odd())), ground.settings, said.append, every_s=0.01
    ):
        assert again.wait(PATIENCE_S)
    assert [line for line in said if "nobody foresaw" in line] == [
        "free space cannot be read: what nobody foresaw"
    ]


def test_spare_checkouts_are_made_beside_a_pool(ground: Ground) -> None:
    """After a run has got a new workdir, a spare of its repository is made, and the next run gets
    it. If that fails, one line says so, and the housekeeping goes on."""
    workspaces = Workspaces(ground.yard.root, environ=ground.yard.environ, spares=1)
    ground.engine = replace(ground.engine, workspaces=workspaces)
    spares = ground.yard.root / ".perdure/spares"
    said: list[str] = []
    ground.run()
    with Housekeeping(ground.engine, ground.settings, said.append, every_s=0.01):
        until(lambda: any(spares.glob("*.0")))
    known = next(spares.glob("*.0/files/README")).stat().st_ino
    _, top = ground.run(name="next", branch="next")
    assert (top / "README").stat().st_ino == known
    spares.rename(spares.with_name("aside"))
    spares.write_text("not a directory")
    with Housekeeping(ground.engine, ground.settings, said.append, every_s=0.01):
        until(lambda: said)
        ground.run(name="third", branch="third")
        until(lambda: len(said) == 2)
    assert said[0] == said[1] and said[0].startswith("no spare checkout could be made: ")


def test_a_sweep_leaves_nothing_locked(ground: Ground) -> None:
    """After a sweep another one may follow at once, even while a child process that another thread
    starts still has the first one's descriptors."""
    with sweeps._sweep_lock(ground.engine.state):
        lock = next(
            fd
            for fd in Path("/proc/self/fd").iterdir()
            if os.path.realpath(fd).endswith("/sweep.lock")
        )
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"],
            stdin=subprocess.PIPE,
            pass_fds=[int(lock.name)],
        )
    with (
        sweeps._sweep_lock(ground.engine.state),
        pytest.raises(Conflict, match="Another sweep"),
        sweeps._sweep_lock(ground.engine.state),
    ):
        raise AssertionError("two at once")
    child.communicate(b"\n")


def test_a_pool_begins_nothing_for_an_agent_whose_home_is_full(
    ground: Ground, tmp_path: Path
) -> None:
    """The run stays queued and unclaimed while the volume of its agent's home is too full. When
    there is space, it is claimed."""
    yard = ground.yard
    home = tmp_path / "claude"
    spec = replace(yard.spec("worktree"), env={"CLAUDE_CONFIG_DIR": str(home)})
    run = ground.engine.store.add(
        spec, "r" * 32, "queued", ground.engine.workspaces.plan(spec, "queued", yard.repo)
    )
    # No other volume is watched, so only the home makes the run wait.
    full = replace(ground.engine, volumes=Volumes(places=(), refuse=100.1, refuse_bytes=2**62))
    assert work(full, 1, once=True) == 0
    assert ground.engine.store.get(run.id).attempt == 0
    assert work(replace(ground.engine, volumes=Volumes(places=(), refuse=0.0)), 1, once=True) >= 1


def test_a_machine_whose_own_clock_differs_takes_nothing(ground: Ground) -> None:
    """In a time namespace the machine's own clock is a year ahead, while the wall clock is right.
    The real command stops with 3 and removes nothing."""
    _, top = ground.run()
    environ = {
        **ground.yard.environ,
        "PERDURE_ROOT": str(ground.yard.root),
        "PERDURE_STATE": str(ground.state),
        "PERDURE_GC_WORKDIRS": "0",
    }
    environ["PERDURE_DISK_BALLAST"] = "0"
    ground.sweep()
    words = [
        "unshare",
        "--map-root-user",
        "--time",
        "--boottime",
        str(365 * 86_400),
        "--fork",
        sys.executable,
        "-m",
        "perdure",
        "gc",
    ]
    done = subprocess.run(words, env=environ, cwd=ground.yard.repo, capture_output=True, text=True)
    assert done.returncode == 3 and "the clock was moved back" in done.stderr, done.stderr
    assert top.is_dir()


def test_checkpoints_go_but_the_newest_stays(ground: Ground) -> None:
    """A month after the run has ended only its newest checkpoint is left, which is that of its
    swept workdir. When the run is removed from the list, that checkpoint is deleted too."""
    from perdure.engine.sweeper import Class, SweepVerdict
    from perdure.model import Checkpoint

    run, top = ground.run()
    assert run.workspace is not None
    for number in (1, 2, 3):
        (top / "new").write_text(f"{number}\n")
        saved = ground.engine.workspaces.checkpoints.save(run.workspace, number)
        ground.engine.store.add_checkpoint(
            Checkpoint(
                run=run.id, number=number, attempt=1, at=run.updated, why="turn", workdir=saved
            )
        )
    assert not [row for row in ground.sweep(days=20).taken if row.cls is Class.CHECKPOINTS]
    swept = ground.sweep(days=20)
    assert [row.verdict for row in swept.rows if row.cls is Class.CHECKPOINTS] == [
        SweepVerdict.TAKE
    ] * 3 + [SweepVerdict.KEEP]
    assert [each.number for each in ground.engine.store.checkpoints(run.id)] == [4]
    refs = ground.yard.git(
        "for-each-ref", "--format=%(refname)", "refs/perdure/checkpoints"
    ).split()
    assert [name.rpartition("/")[2] for name in refs] == ["4"]
    assert ground.yard.git("show", f"{refs[0]}:worktree/new") == "3"
