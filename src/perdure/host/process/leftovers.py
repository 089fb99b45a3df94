"""Processes that an agent's commands left running when its turn was over.

Called by `attempt` for agents that do not exit by themselves. For an agent that did exit, its shim
finds the processes that outlived it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from perdure.host.process.orphans import survivors
from perdure.host.shim import describe
from perdure.host.system import as_start, stat


class Left(Struct, frozen=True):
    """One process that was left running."""

    pid: int
    command: str
    age_s: float


def started_since(mark: str, since: float, but: Sequence[int]) -> list[int]:
    """Return the live processes with this mark that began at `since` (seconds on the boot clock) or
    later. `but`: the agent and its shim."""
    found = []
    for pid in survivors(mark):
        known = stat(pid)
        # A start time is only precise to a hundredth of a second.
        if known is not None and pid not in but and known[3] >= as_start(since):
            found.append(pid)
    return found


def commands(pids: Sequence[int]) -> tuple[list[Left], int]:
    """Return those of the processes that have no child among them (the commands, not the shells
    around them), and their number."""
    known = {pid: stat(pid) for pid in pids}
    parents = {found[1] for found in known.values() if found is not None}
    leaves = [pid for pid in pids if pid not in parents]
    told = [
        Left(int(str(each["pid"])), str(each["command"]), float(str(each["age_s"])))
        for each in describe(leaves)
    ]
    return told, len(leaves)
