"""The bell wakes a pool as soon as work is due, but a pool finds all work without it, too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

from perdure.host.wakeup import Bell, has_pool, ring

LONG_S = 3600.0


def test_a_bell_wakes_who_waits(tmp_path: Path) -> None:
    """A pool that would sleep for an hour is woken if any process, or the pool itself, rings the
    bell of its state directory."""
    with closing(Bell(tmp_path)) as bell:
        for kick in (lambda: ring(tmp_path), bell.ring):
            waiting = threading.Thread(target=bell.wait, args=(LONG_S,))
            waiting.start()
            kick()
            waiting.join()


def test_a_ring_before_the_wait_counts(tmp_path: Path) -> None:
    """A ring before the wait ends the next wait. A bell without a listener blocks no process."""
    with closing(Bell(tmp_path)) as bell:
        for _ in range(1000):
            ring(tmp_path)
        bell.wait(LONG_S)


def test_nobody_has_to_be_there(tmp_path: Path) -> None:
    """Without a pool a ring has no effect. The bell that a killed pool left is removed, and the
    bell of another pool still rings."""
    ring(tmp_path / "nothing")
    killed = (
        "import os, pathlib, sys, perdure.host.wakeup as b; b.Bell(pathlib.Path(sys.argv[1])); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    assert len(list((tmp_path / "bells").iterdir())) == 1
    assert not has_pool(tmp_path / "nothing") and not has_pool(tmp_path)
    assert len(list((tmp_path / "bells").iterdir())) == 1
    with closing(Bell(tmp_path)) as bell:
        assert has_pool(tmp_path)
        ring(tmp_path)
        assert [path.name for path in (tmp_path / "bells").iterdir()] == [str(os.getpid())]
        bell.wait(LONG_S)
    assert list((tmp_path / "bells").iterdir()) == []


def test_any_length_of_path(tmp_path: Path) -> None:
    """The bell works even if the state directory's path is longer than a socket's address may
    be."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with closing(Bell(deep)) as bell:
        ring(deep)
        bell.wait(LONG_S)
