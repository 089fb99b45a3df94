"""perdure is killed while it writes task files. The next attempt completes the work, and nothing is
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
    """perdure gets SIGKILL at each access to the file system, from the first read to the last
    record. The next attempt completes the work."""
    found = trials("each", 1000)
    assert found["struck"] == found["trials"] - 1 > 50


def test_killed_at_each_step_and_changed_by_somebody() -> None:
    """perdure gets SIGKILL at every third access to the file system. Before the next attempt
    somebody changes one of the files. The changed content stays, or is in a backup."""
    found = trials("meddled", 1000, stride=3)
    assert found["struck"] == found["trials"] - 1 > 20


def test_killed_at_random_moments() -> None:
    """perdure gets SIGKILL from outside at a random moment. The next attempt completes the work."""
    assert trials("random", 20)["struck"] > 0
