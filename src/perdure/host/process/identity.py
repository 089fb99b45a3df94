"""Which process is meant: never a bare pid, always (boot, pid, start time), and signals through a
pidfd.

Also a worker's name for itself, by which another worker on the same host can tell whether it still
lives.
"""

from __future__ import annotations

import fcntl
import os
import signal
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from perdure.host.shim import stat
from perdure.lateclass import dataclass
from perdure.model import NOWHERE, Host


@cache
def boot_id() -> str:
    """The kernel's name for this boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@cache
def namespace() -> str:
    """The number of this process's pid namespace: in another one, as in another container, the same
    pid is another process."""
    try:
        return os.readlink("/proc/self/ns/pid").partition("[")[2].rstrip("]")  # noqa: PTH115
    except OSError:
        return ""


def is_dead(known: tuple[str, int, int, int]) -> bool:
    """Ended and only waiting to be reaped. A first thread that has ended while others run is not
    the process's end."""
    state, _, threads, _ = known
    return state in "ZX" and threads <= 1


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for ever: a recycled pid has another start time, a rebooted machine another boot
    id."""

    boot: str
    pid: int
    starttime: int
    """Clock ticks since boot, field 22 of /proc/PID/stat."""

    @staticmethod
    def of(pid: int) -> Identity | None:
        """The live process that has this pid now, or None."""
        known = stat(pid)
        return None if known is None or is_dead(known) else Identity(boot_id(), pid, known[3])

    def alive(self) -> bool:
        return self == Identity.of(self.pid)

    def open(self) -> int | None:
        """A pidfd of exactly this process, which the caller closes; None if it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except (ProcessLookupError, OSError):
            return None
        if self.alive():
            return fd
        os.close(fd)
        return None

    def send(self, number: signal.Signals) -> bool:
        """A signal to exactly this process. False if it has ended, or belongs to another user."""
        fd = self.open()
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except (ProcessLookupError, PermissionError):
            return False
        finally:
            os.close(fd)
        return True


def machine(state: Path) -> str:
    """This machine's own id: made once, and kept in the state directory. Whoever asks first, and at
    the same moment, gets the same."""
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
    """Who this is among the hosts that share a database."""
    return Host(machine(state), os.uname().nodename, patience_s)


def worker_identity(host: Host = NOWHERE) -> str:
    """This process as `host:boot8.namespace:pid:starttime`; among several hosts, the host's own id
    is a part of its name."""
    known = stat("self")
    name = host.label if host.id else os.uname().nodename
    started = known[3] if known else 0
    return f"{name}:{boot_id()[:8]}.{namespace()}:{os.getpid()}:{started}"


def worker_alive(identity: str, host: Host = NOWHERE) -> bool | None:
    """Whether the process that called itself so still lives; None if it is on another host, or the
    text is no identity.

    Without a shared database, two machines (or pid namespaces) with one host name cannot be told
    apart: the other's workers look dead.
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
