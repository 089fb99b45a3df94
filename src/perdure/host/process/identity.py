"""Identifies processes by boot, pid and start time, never by a bare pid.

A signal is sent through a handle of the process, so it cannot reach another process that got the
same pid later. This module also makes the name of a worker. From this name, another worker on the
same host can find out whether the first one is still alive.
"""

from __future__ import annotations

import fcntl
import os
import signal
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from msgspec import Struct

from perdure.host import system
from perdure.host.system import Handle, is_dead, namespace, stat
from perdure.model import UNSHARED_HOST, Host


@cache
def boot_id() -> str:
    """Return the kernel's id of the current boot."""
    return system.boot_id()


class Identity(Struct, frozen=True):
    """Identity of a process. A reused pid has another start time, and a rebooted machine has
    another boot id."""

    boot: str
    pid: int
    starttime: int
    """Start time, in the unit of `system.stat`. On Linux, these are clock ticks since boot."""

    @staticmethod
    def of(pid: int) -> Identity | None:
        """Return the identity of the live process that has this pid now; None if there is none."""
        known = stat(pid)
        if known is None or is_dead(known):
            return None
        return Identity(boot_id(), pid, known[3])

    def alive(self) -> bool:
        return self == Identity.of(self.pid)

    def open(self) -> Handle | None:
        """Return a handle of this process, which the caller has to close; None if the process has
        ended."""
        held = system.open_process(self.pid)
        if held is None or self.alive():
            return held
        held.close()
        return None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this process. Return False if it has ended or belongs to another
        user."""
        held = self.open()
        if held is None:
            return False
        try:
            held.send(number)
        except (ProcessLookupError, PermissionError):
            return False
        finally:
            held.close()
        return True


def machine(state: Path) -> str:
    """Return the id of this machine, which is created once and stored in the state directory. A
    lock ensures that processes that ask for the first time at the same moment get the same id."""
    place = state / "machine"
    with suppress(FileNotFoundError):
        if known := place.read_text().strip():
            return known
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        known = file.read().strip()
        if not known:
            known = uuid.uuid4().hex
            file.write(known)
            file.flush()
            os.fsync(fd)
    return known


def this_host(state: Path, patience_s: float | None) -> Host:
    """Return this machine as one of the hosts that share a database. `patience_s`: see `Host`."""
    return Host(machine(state), os.uname().nodename, patience_s)


def worker_identity(host: Host = UNSHARED_HOST) -> str:
    """Return the name of this worker: `host:boot.namespace:pid:starttime`, where `boot` is the
    first 8 characters of the boot id. If several hosts share a database, the host part includes the
    host's id."""
    known = stat("self")
    name = host.label if host.id else os.uname().nodename
    started = known[3] if known else 0
    return f"{name}:{boot_id()[:8]}.{namespace()}:{os.getpid()}:{started}"


def worker_alive(identity: str, host: Host = UNSHARED_HOST) -> bool | None:
    """Return whether the worker with this name is still alive. Return None if it runs on another
    host, or if the text is not the name of a worker.

    Without a shared database, two machines (or pid namespaces) with the same host name cannot be
    distinguished. Workers of the other machine then look dead.
    """
    match identity.rsplit(":", 3):
        case [name, boot, pid, starttime] if pid.isdecimal() and starttime.isdecimal():
            if name != (host.label if host.id else os.uname().nodename):
                return None
            return (
                boot.partition(".")[0] == boot_id()[:8]
                and Identity(boot_id(), int(pid), int(starttime)).alive()
            )
        case _:
            return None
