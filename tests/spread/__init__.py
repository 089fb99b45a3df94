"""Repository, root, state and agents' homes are on separate file systems, as with containers,
volumes and a separate /home.

If `SWITCH` is set, fixtures call `apart` for the directories that are to be file systems. Each
becomes a small tmpfs, while the repositories stay where pytest keeps its files. No path changes, so
every test can run that way. It needs a mount namespace: `python -m tests.spread` makes one, and its
mounts vanish with its last process.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

SWITCH = "PERDURE_TEST_SPREAD"

_mounted: list[Path] = []


def is_on() -> bool:
    return os.environ.get(SWITCH) == "1"


def apart(*directories: Path) -> None:
    """Make each directory a separate file system, if the switch is on. An inner directory comes
    after the outer one."""
    if not is_on():
        return
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        if directory not in _mounted:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "mode=0755,size=2g", "perdure-test", str(directory)],
                check=True,
            )
            _mounted.append(directory)


def together() -> None:
    """Unmount this process's mounts, and remove the empty directories of a finished fixture."""
    while _mounted:
        directory = _mounted.pop()
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
            os.removedirs(directory.parent)
