"""Hides the memory of this process from other processes of the same user, above all from agents.

The command line calls `system.forbid_reading` before it loads anything else for a command that
holds secrets. `serve` calls `wipe_variables` after it has read the secrets in environment
variables. Guarantees, on Linux, after these calls: a process without CAP_SYS_PTRACE cannot trace
this process, and cannot read this process's environment, memory and open files below /proc. No core
file is written. Limits: an agent that runs as root has that capability, except in most containers.
Systems other than Linux hide nothing from processes of the same user.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from perdure.host import system

_WORDS = 2
"""Number of words of a command line that `holders` returns."""


def wipe_variables(names: Collection[str]) -> None:
    """Remove variables from this process's environment, and overwrite their bytes in its memory.

    Removal from `os.environ` is not enough. /proc/PID/environ shows the original bytes as long as
    the process lives.
    """
    for name in names:
        os.environ.pop(name, None)
    system.wipe_variables(names)


def holders(values: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield the pid and the first words of the command line of each other process whose environment
    contains one of the values. Processes whose environment this process may not read are left out.
    """
    wanted = [os.fsencode(value) for value in values if value]
    for pid in system.pids():
        if pid == os.getpid():
            continue
        try:
            environ = system.variables(pid)
            command = system.command(pid).split(b"\0")
        except OSError:
            continue
        if any(value in environ for value in wanted):
            yield pid, " ".join(map(os.fsdecode, command[:_WORDS]))
