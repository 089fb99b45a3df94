"""Finds processes that an agent's commands left running when its turn was over.

Called by `attempt` for agents that do not exit by themselves. If an agent exits, its shim finds the
processes that outlived it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from perdure.host.process.orphans import survivors
from perdure.host.shim import describe
from perdure.host.system import as_start, stat


class Left(Struct, frozen=True):
    """A process that an agent's command left running."""

    pid: int
    command: str
    age_s: float


def started_since(mark: str, since: float, but: Sequence[int]) -> list[int]:
    """Return the live processes with this mark that started at `since` (seconds on the boot clock)
    or later. `but`: processes to leave out, which are the agent and its shim."""
    found = []
    for pid in survivors(mark):
        known = stat(pid)
        # Both times are compared in ticks, because a start time is only precise to a hundredth of a
        # second.
        if known is not None and pid not in but and known[3] >= as_start(since):
            found.append(pid)
    return found


def commands(pids: Sequence[int]) -> tuple[list[Left], int]:
    """Return the processes in `pids` that have no child in `pids`, and their number. These are the
    commands themselves, without the shells that started them."""
    known = {pid: stat(pid) for pid in pids}
    parents = {found[1] for found in known.values() if found is not None}
    leaves = [pid for pid in pids if pid not in parents]
    told = []
    for each in describe(leaves):
        told.append(Left(int(str(each["pid"])), str(each["command"]), float(str(each["age_s"]))))
    return told, len(leaves)
