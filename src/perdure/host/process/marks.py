"""Everything that an attempt started, found by its mark, and ended for certain.

The shim ends its own tree. This is for the day when the shim itself was killed: its orphans then
belong to init, and only what they inherited tells where they came from. A mark is inherited twice:
as PERDURE_ATTEMPT in the environment, and as the soft value of a resource limit that Linux hands
down and does not enforce (RLIMIT_LOCKS), which no `env -i` takes away.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from pathlib import Path

from perdure.host.process.identity import Identity, boot_id, is_dead
from perdure.host.shim import RLIMIT_LOCKS, boottime, pids, stat

VARIABLE = "PERDURE_ATTEMPT"
SHIM = Path(__file__).parent.parent / "shim.py"
KEEPER = Path(__file__).parent.parent / "keeper" / "__main__.py"
SHIM_GRACE_S = 2.0
"""What the shim gets to write its exit.json, after everything below it has ended."""
_PASSES = 8


def limit_value(mark: str) -> int:
    """The mark as a resource limit: 62 bits of its hash."""
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:8], "big") >> 2


def survivors(mark: str) -> list[int]:
    """Pids of all live processes that carry the mark, or descend from one that does; never this
    process."""
    return sorted(identity.pid for identity in _marked(mark))


def end_all(mark: str, grace_s: float = 2.0) -> int:
    """Ends all that carry the mark: TERM, the grace in seconds, KILL, until none is left. Returns
    how many there were.

    A shim among them goes last, so that the lock it holds outlives its tree. A process of another
    user, which cannot be signalled, is left alone.
    """
    met: set[Identity] = set()
    kill_at = boottime() + grace_s
    spare_shim_until = 0.0
    while found := {one for one in _marked(mark) if _may_signal(one.pid)}:
        now = boottime()
        kill = now >= kill_at
        others = {one for one in found if not _is_shim(one.pid)}
        if others:
            spare_shim_until = now + SHIM_GRACE_S
        targets = others if kill and now < spare_shim_until else found
        for one in sorted(
            targets, key=lambda one: (one.starttime, one.pid)
        ):  # parents first: they have nothing to say to it
            if kill or one not in met:
                one.send(signal.SIGKILL if kill else signal.SIGTERM)
        met |= found
        time.sleep(0.01)
    return len(met)


def _marked(mark: str) -> set[Identity]:
    known = _processes()
    value, entry = limit_value(mark), f"{VARIABLE}={mark}".encode()
    family = {pid for pid in known if _carries(pid, value, entry)}
    grown = True
    while grown:
        more = {pid for pid, (_, parent, _, _) in known.items() if parent in family} - family
        family |= more
        grown = bool(more)
    family.discard(os.getpid())
    return {Identity(boot_id(), pid, known[pid][3]) for pid in family}


def _processes() -> dict[int, tuple[str, int, int, int]]:
    """All live processes. What is born while the list is read is read too, so that a chain of forks
    does not slip through."""
    seen: dict[int, tuple[str, int, int, int] | None] = {}
    for _ in range(_PASSES):
        fresh = [pid for pid in pids() if pid not in seen]
        if not fresh:
            break
        seen.update((pid, stat(pid)) for pid in fresh)
    return {pid: known for pid, known in seen.items() if known is not None and not is_dead(known)}


def _carries(pid: int, value: int, entry: bytes) -> bool:
    try:
        if resource.prlimit(pid, RLIMIT_LOCKS)[0] == value:
            return True
    except OSError:
        # Another user's, ended, or a kernel that does not tell: the environment is the other
        # witness
        pass
    try:
        return entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _is_shim(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return os.fsencode(SHIM) in words or os.fsencode(KEEPER) in words
    except OSError:
        return False


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        return True  # it has just ended: the next look will not find it
    return True
