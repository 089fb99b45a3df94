"""Keeps what this process holds in its memory from the other processes of the same user, agents
above all.

Called by the command line before anything else of a verb that holds secrets is loaded, and by
`serve` when it has read those that came by variables. Guarantees, on Linux: after `forbid_reading`
a process without CAP_SYS_PTRACE can neither read this one's environment, memory and open files
below /proc nor trace it, and no core file is written. An agent that runs as root has that
capability, outside of most containers: nothing is kept from it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator
from pathlib import Path

PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
ENVIRONMENT = 47
"""Index of the field `env_start` of /proc/PID/stat among those after the name (proc_pid_stat(5),
field 50)."""
_WORDS = 2
"""Parts of a command line that name a process to a person."""


def forbid_reading() -> None:
    """Make this process unreadable. It holds until the next exec, so programs that are started from
    here are ordinary ones."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def is_unreadable() -> bool:
    """Return whether `forbid_reading` is in force."""
    return bool(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)


def wipe_variables(names: Collection[str]) -> None:
    """Overwrite variables in the memory in which this process got its environment.

    Removing a variable from `os.environ` leaves its bytes there, where /proc/PID/environ shows them
    for as long as the process lives.
    """
    for name in names:
        os.environ.pop(name, None)
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[ENVIRONMENT]), int(fields[ENVIRONMENT + 1])
    if not start < end:  # a kernel that does not tell
        return
    at, wanted = start, {os.fsencode(name) for name in names}
    for entry in ctypes.string_at(start, end - start).split(b"\0"):
        if entry.partition(b"=")[0] in wanted:
            ctypes.memset(at, 0, len(entry))
        at += len(entry) + 1


def holders(values: Collection[str]) -> Iterator[tuple[int, str]]:
    """Find other processes that have one of the values in an environment that this process can
    read: id, and what it runs."""
    wanted = [os.fsencode(value) for value in values if value]
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            environ = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(value in environ for value in wanted):
            yield int(process.name), " ".join(os.fsdecode(word) for word in command[:_WORDS])
