"""perdure is killed while it writes the files. The next attempt completes the work, and nothing is
lost or merged twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

TOP = Path(__file__).parents[2]


def trials(way: str, count: int, stride: int = 1) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.taskfiles.killing", way, "7", str(count), str(stride)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["wrong"] == []
    return found


def test_killed_at_each_step() -> None:
    """SIGKILL at every touch of the file system, from the first look to the last record."""
    found = trials("each", 1000)
    assert found["struck"] == found["trials"] - 1 > 50


def test_killed_at_each_step_and_changed_by_somebody() -> None:
    """SIGKILL at every third touch of the file system. Before the next attempt somebody changes one
    of the files: the changed content stays, or is in a backup."""
    found = trials("meddled", 1000, stride=3)
    assert found["struck"] == found["trials"] - 1 > 20


def test_killed_at_random_moments() -> None:
    """SIGKILL from outside, at any moment."""
    assert trials("random", 20)["struck"] > 0
