"""Finds all processes of an attempt by its mark, and ends them.

Normally the shim ends its own tree. This module is for the case that the shim was killed. The
shim's descendants then belong to init, and only values that they inherited show which attempt they
belong to. Processes inherit the mark in two ways. One is the variable PERDURE_ATTEMPT. The other is
the soft value of a resource limit that Linux passes on to children without enforcing it
(RLIMIT_LOCKS), which `env -i` does not remove. Other systems have only the variable. There, all
processes in the session of a marked session leader count as processes of the attempt.

`started_since` and `commands` find the processes that an agent's commands left running when the
agent's turn was over. `attempt` calls them for agents that do not exit by themselves. If an agent
exits, its shim finds the processes that outlived the agent.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from perdure.host import system
from perdure.host.process.identity import Identity, boot_id
from perdure.host.shim import describe
from perdure.host.system import as_start, boottime, is_dead, pids, stat

VARIABLE = "PERDURE_ATTEMPT"
SHIM = Path(__file__).parent.parent / "shim.py"
COMPILED = f"{SHIM.with_suffix('')}-"
"""Beginning of the path of a compiled shim. The rest is the hash of its source."""
KEEPER = Path(__file__).parent.parent / "keeper" / "__main__.py"
SHIM_GRACE_S = 2.0
"""Time for a shim to write its exit.json after all its descendants have ended, in seconds."""
_PASSES = 8


def limit_value(mark: str) -> int:
    """Return the mark as a value for a resource limit: 62 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:8], "big") >> 2


def survivors(mark: str) -> list[int]:
    """Return the pids of all live processes that carry the mark, and of their descendants. This
    process is left out."""
    return sorted(identity.pid for identity in _marked(mark))


def end_all(mark: str, grace_s: float = 2.0, *, shim: Identity | None = None) -> int:
    """End all processes that carry the mark, and their descendants: TERM, then KILL after the
    grace, until none is left. Return how many there were.

    A shim among them is ended last, so that its lock is held until its tree has ended. `shim`: the
    attempt's shim, if the caller knows it. It counts even if it does not show the mark yet, because
    the kernel publishes the environment of a new process some time after the start. Processes of
    another user cannot be signaled and are left alone.
    """
    met: set[Identity] = set()
    spare_shim_until = 0.0
    if shim is not None and shim.alive():
        met.add(shim)
        spare_shim_until = boottime() + SHIM_GRACE_S
    kill_at = boottime() + grace_s
    while found := {one for one in _marked(mark) | _dying(met) if _may_signal(one.pid)}:
        now = boottime()
        kill = now >= kill_at
        others = {one for one in found if one != shim and not is_shim(one.pid)}
        if others:
            spare_shim_until = now + SHIM_GRACE_S
        targets = others if kill and now < spare_shim_until else found
        for one in sorted(
            targets, key=lambda one: (one.starttime, one.pid)
        ):  # parents first, before they react to the end of a child
            if kill or one not in met:
                one.send(signal.SIGKILL if kill else signal.SIGTERM)
        met |= found
        time.sleep(0.01)
    return len(met)


def _dying(met: set[Identity]) -> set[Identity]:
    """Return the processes in `met` that are still alive. The marks cannot show this: a killed
    process loses its environment, and so its mark, before it gives up its locks."""
    return {one for one in met if one.alive()}


def _marked(mark: str) -> set[Identity]:
    known = _processes()
    value, entry = limit_value(mark), f"{VARIABLE}={mark}".encode()
    family = {pid for pid in known if _has_mark(pid, value, entry)}
    grown = True
    while grown:
        more = {pid for pid, (_, parent, _, _) in known.items() if parent in family} - family
        family |= more
        grown = bool(more)
    family |= system.session_families(family) & set(known)
    family.discard(os.getpid())
    return {Identity(boot_id(), pid, known[pid][3]) for pid in family}


def _processes() -> dict[int, tuple[str, int, int, int]]:
    """Return the results of `stat` for all live processes, by pid. The list of pids is read several
    times, so that a child that is forked during the reading is not missed."""
    seen: dict[int, tuple[str, int, int, int] | None] = {}
    for _ in range(_PASSES):
        fresh = [pid for pid in pids() if pid not in seen]
        if not fresh:
            break
        seen.update((pid, stat(pid)) for pid in fresh)
    return {pid: known for pid, known in seen.items() if known is not None and not is_dead(known)}


def _has_mark(pid: int, value: int, entry: bytes) -> bool:
    if system.carries_limit(pid, value):
        return True
    try:
        return entry in system.variables(pid).split(b"\0")
    except OSError:
        return False


def is_shim(pid: int) -> bool:
    """Return whether a process is a shim or a keeper of this installation, by its command line."""
    try:
        words = system.command(pid).split(b"\0")
        if words[0].startswith(os.fsencode(COMPILED)):
            return True
        return os.fsencode(SHIM) in words or os.fsencode(KEEPER) in words
    except OSError:
        return False


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        return True  # The process has just ended. The next round will not find it.
    return True


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
