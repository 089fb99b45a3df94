"""Starts a supervisor that outlives the process that started it, for `perdure run --detach`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def spawn_detached(argv: Sequence[str], log: Path) -> int:
    """Start `argv` in a session of its own, with this process's environment and without a terminal.
    Return the pid of the new process. The new process has an empty standard input, and all its
    output goes to the file `log` (0600). This process does not wait for it; init reaps it."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(argv[0], list(argv), os.environ, file_actions=files, setsid=True)
