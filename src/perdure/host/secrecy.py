"""Hides the memory of this process from other processes of the same user, above all from agents.

The command line calls `system.forbid_reading` before it loads anything else for a verb that holds
secrets, and `serve` calls `wipe_variables` once it has read the secrets that came in environment
variables. Guarantees, on Linux: after that, a process without CAP_SYS_PTRACE can neither trace this
one nor read its environment, memory and open files below /proc, and no core file is written. An
agent that runs as root has that capability, except in most containers: nothing is hidden from it.
Other systems than Linux hide nothing from the same user.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from perdure.host import system

_WORDS = 2
"""Number of leading words of a command line that are shown to identify a process."""


def wipe_variables(names: Collection[str]) -> None:
    """Overwrite variables in the memory in which the kernel gave this process its environment.

    Removing a variable from `os.environ` leaves its bytes there, and /proc/PID/environ shows them
    for as long as the process lives.
    """
    for name in names:
        os.environ.pop(name, None)
    system.wipe_variables(names)


def holders(values: Collection[str]) -> Iterator[tuple[int, str]]:
    """Find other processes whose environment is readable from here and contains one of the values.
    Yields the process id and the first words of its command line."""
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
            yield pid, " ".join(os.fsdecode(word) for word in command[:_WORDS])
