"""Hides the memory of this process from other processes of the same user, above all from agents.

Called by the command line before it loads anything else for a verb that holds secrets, and by
`serve` once it has read the secrets that came in environment variables. Guarantees, on Linux: after
`forbid_reading`, a process without CAP_SYS_PTRACE can neither trace this one nor read its
environment, memory and open files below /proc, and no core file is written. An agent that runs as
root has that capability, except in most containers: nothing is hidden from it.
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
"""Number of leading words of a command line that are shown to identify a process."""


def forbid_reading() -> None:
    """Make this process unreadable, until its next exec: programs that it starts are readable as
    usual."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def is_unreadable() -> bool:
    """Return whether `forbid_reading` is in force."""
    return bool(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)


def wipe_variables(names: Collection[str]) -> None:
    """Overwrite variables in the memory in which the kernel gave this process its environment.

    Removing a variable from `os.environ` leaves its bytes there, and /proc/PID/environ shows them
    for as long as the process lives.
    """
    for name in names:
        os.environ.pop(name, None)
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[ENVIRONMENT]), int(fields[ENVIRONMENT + 1])
    if not start < end:  # the kernel does not report the addresses
        return
    at, wanted = start, {os.fsencode(name) for name in names}
    for entry in ctypes.string_at(start, end - start).split(b"\0"):
        if entry.partition(b"=")[0] in wanted:
            ctypes.memset(at, 0, len(entry))
        at += len(entry) + 1


def holders(values: Collection[str]) -> Iterator[tuple[int, str]]:
    """Find other processes whose environment is readable from here and contains one of the values.
    Yields the process id and the first words of its command line."""
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
