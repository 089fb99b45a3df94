"""Puts repository, root, state and agents' homes on separate file systems, as with containers,
volumes and a separate /home.

If `SWITCH` is set, fixtures call `apart` for the directories that are to be file systems. Each
becomes a small tmpfs, while the repositories stay where pytest keeps its files. No path changes, so
every test can run in this way. This needs a mount namespace. `python -m tests.spread` makes one,
and its mounts vanish with its last process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

SWITCH = "PERDURE_TEST_SPREAD"

_mounted: list[Path] = []


def is_on() -> bool:
    return os.environ.get(SWITCH) == "1"


def apart(*directories: Path) -> None:
    """Make each directory a separate file system if the switch is on. List an inner directory after
    the outer one."""
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


def remove(directory: Path) -> None:
    """Remove a directory with everything in it, also where parts of it are separate file
    systems."""
    unmount(directory)
    shutil.rmtree(directory)


def unmount(directory: Path) -> None:
    """Unmount the separate file systems in a directory. Their files are lost."""
    for inner in [each for each in _mounted if each.is_relative_to(directory)][::-1]:
        subprocess.run(["umount", "--lazy", str(inner)], check=True)
        _mounted.remove(inner)


def is_untouched(directory: Path) -> bool:
    """Return whether nothing has been made in a directory that the test did not make itself. A
    separate file system exists before the test, and is empty."""
    if directory in _mounted:
        return not list(directory.iterdir())
    return not directory.exists()


def count() -> int:
    """Return the number of file systems that are mounted now, for `together`."""
    return len(_mounted)


def rename(old: Path, new: Path) -> Path:
    """Rename a file or directory, and return its new path. It is copied if the new path is on
    another file system, or if the directory is a file system itself."""
    try:
        return old.rename(new)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
    if old.is_dir():
        shutil.copytree(old, new, symlinks=True)
        remove(old)
    else:
        shutil.move(old, new)
    return new


def together(kept: int = 0) -> None:
    """Unmount this process's file systems, and remove the empty directories of a finished fixture.
    The first `kept` file systems stay: they belong to fixtures that live longer than a test."""
    while len(_mounted) > kept:
        directory = _mounted.pop()
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
            os.removedirs(directory.parent)
