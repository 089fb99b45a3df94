"""Runs an agent so that it outlives its supervisor, and ends the agent together with every process
that it started.

Called by `attempt` (start, wait, stop, verify), `worker` and `sweeper` (find, adopt, end). The
supervisor prepares a directory for the attempt and starts a shim (`perdure.host.shim`) in it; the
shim is the agent's parent. Output goes to files, which `Lines` follows; the result comes from
`exit.json`. Guarantees:

- An agent continues when its supervisor dies, and the next supervisor needs only the directory to
  find it.
- Every attempt has one Exit. `wait` returns it only when no process of the attempt is running.
- The workspace lock is held exactly as long as the shim lives. The shim lives as long as any
  process that descends from it.
- No signal goes to a process that was not identified by boot, pid and start time.
- A kept agent (`keep`) serves one attempt after the other. It holds no lock between two attempts,
  and ends with its owner.
- An agent's output, whatever its content and size, never blocks or crashes the supervisor, and
  never fills its memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from perdure.host.process.child import Process
from perdure.host.process.identity import (
    Identity,
    machine,
    this_host,
    worker_alive,
    worker_identity,
)
from perdure.host.process.kept import Kept, end_kept, keep
from perdure.host.process.launch import (
    OUTPUT_CAP,
    find,
    hold,
    launched,
    run_quick,
    running,
    start,
)
from perdure.host.process.lines import Lines, plain, tail
from perdure.host.process.orphans import Left, commands, end_all, started_since, survivors
from perdure.host.system import boottime

if TYPE_CHECKING:
    from perdure.host.process.child_process import ChildProcess
    from perdure.host.process.probe import Probe

__all__ = [
    "OUTPUT_CAP",
    "ChildProcess",
    "Identity",
    "Kept",
    "Left",
    "Lines",
    "Probe",
    "Process",
    "boottime",
    "commands",
    "end_all",
    "end_kept",
    "find",
    "hold",
    "keep",
    "launched",
    "machine",
    "plain",
    "run_quick",
    "running",
    "start",
    "started_since",
    "survivors",
    "tail",
    "this_host",
    "worker_alive",
    "worker_identity",
]

_LATE = {"ChildProcess": "child_process", "Probe": "probe"}
"""Names that are imported on first use, each with its module. Starting an agent does not need
them."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
