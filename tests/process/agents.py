"""Shared parts of the process tests: waiting for events, checking processes, and a tool that tries
everything to escape."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.host.process import Process
from perdure.host.system import IS_PORTABLE
from tests.patience import PATIENCE_S

Launcher = Callable[..., Process]

_AWAY = (
    "import os,signal,sys,time\n"
    "os.fork() and os._exit(0)\n"
    "os.setsid()\n"
    "os.fork() and os._exit(0)\n"
    "os.closerange(0, 100)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
    "time.sleep(600)\n"
)


BARE = not IS_PORTABLE
"""Whether a daemon without its own session, parent and environment can be found. This is possible
only on Linux."""


def daemon(pid_file: Path, *, bare: bool = BARE) -> str:
    """Return shell words that start a daemon: in a new session, after a double fork, with no open
    files, ignoring TERM, and without an environment if `bare`. The words end when the daemon's
    process id is in the file."""
    return f"""{"env -i " if bare else ""}{sys.executable} -I -S -c "{_AWAY}" {pid_file}; while ! [ -s {pid_file} ]; do sleep 0.02; done"""


def gone(pid: int) -> bool:
    """Return whether the process has ended. A process that only waits to be reaped counts as
    ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def until(happened: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Wait until the function returns a true value, and return that value."""
    end = time.monotonic() + within_s
    while not (found := happened()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return found


def content(path: Path) -> bytes:
    """Return the present content of a file, or b"" if it does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
