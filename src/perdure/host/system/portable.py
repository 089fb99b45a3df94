"""Processes on any POSIX system: psutil, kqueue where it exists, sessions, and a mark in the
environment.

Nothing here reads /proc or calls prctl(2) itself; psutil may. The promises that only Linux can keep
are listed in docs/reference/platforms.md. psutil is imported at the first call, because it takes
longer than everything else that a shim loads.
"""

# ruff: noqa: PTH116 (as in `linux`)
from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from functools import cache
from importlib.util import find_spec
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

WATCH_S = 0.5
"""Longest interval between two looks of the shim at its agent, in seconds. A process that stays
below the agent for that long is seen, wherever it goes later."""
_NOTE_S = 0.2
"""Shortest interval between two such looks, in seconds."""
POLL_S = 0.02
"""Interval at which the end of a process is looked for where there is no kqueue, in seconds."""
_PARTS = 100
"""Number of units of a start time in one second."""
_MOST_DESCRIPTORS = 1 << 16
MARK = "PERDURE_ATTEMPT"


@cache
def _psutil() -> ModuleType:
    try:
        import psutil
    except ImportError:
        from perdure.errors import WorkspaceError

        raise WorkspaceError(*problem() or ("psutil cannot be loaded",)) from None
    module: ModuleType = psutil
    return module


def problem() -> tuple[str, str] | None:
    """Return why perdure cannot work here, and what to do; None if it can."""
    if find_spec("psutil") is not None:
        return None
    return (
        f"perdure needs the library psutil on {sys.platform}, to see which processes are alive",
        "install it: python -m pip install psutil",
    )


# --- clocks and identity


def boottime() -> float:
    """Return the seconds on a clock that never jumps. It includes suspended time on Linux and
    macOS."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _start_clock() -> float:
    """Return the current time on the clock of start times: on Linux psutil counts them from boot,
    elsewhere they are wall time."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return boottime()
    return time.time()


def as_start(moment: float) -> int:
    """Return a moment of `boottime` in the unit of a process's start time."""
    return int((moment + _start_clock() - boottime()) * _PARTS)


def age(start: int) -> float:
    """Return how long ago a process with this start time began, in seconds."""
    return _start_clock() - start / _PARTS


def boot_id() -> str:
    """Return the kernel's id of the current boot where sysctl(3) has one. Elsewhere return a
    constant: start times are wall time on such systems, and identify a process across boots."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        read = ctypes.CDLL(None).sysctlbyname
        size = ctypes.c_size_t(64)
        room = ctypes.create_string_buffer(size.value)
        if read(b"kern.bootsessionuuid", room, ctypes.byref(size), None, 0) == 0:
            return room.value.decode("ascii", "replace").lower()
    return "portable"


def namespace() -> str:
    """Return an empty text: there are no pid namespaces."""
    return ""


# --- facts of one process


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise psutil's exceptions as the corresponding OSError."""
    psutil = _psutil()
    try:
        yield
    except psutil.AccessDenied as error:
        raise PermissionError(str(error)) from None
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(str(error)) from None


def stat(pid: int | str) -> tuple[str, int, int, int] | None:
    """Return state (Z: ended, and not reaped), parent, threads and start time (hundredths of a
    second) of a process; None if it is gone. `self` is this process."""
    psutil = _psutil()
    try:
        process = psutil.Process(os.getpid() if pid == "self" else int(pid))
        with process.oneshot():
            # `create_time` moves with the system's clock; the second part of `_ident` does not.
            start = getattr(process, "_ident", (0, None))[1]
            started = process.create_time() if start is None else start
            if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return "S", process.ppid(), 1, round(started * _PARTS)
            try:
                threads = process.num_threads()
            except psutil.Error:
                threads = 1
            return "Z", process.ppid(), threads, round(started * _PARTS)
    except (psutil.Error, OSError, TypeError):
        return None


def is_dead(known: tuple[str, int, int, int]) -> bool:
    """Return whether the process has ended and only waits to be reaped. If only its first thread
    has ended, the process has not."""
    state, _, threads, _ = known
    return state in "ZX" and threads <= 1


def is_started_with(start: int, registered: str, words: bytes) -> bool:
    """Return whether a process is the one that an agent registered: their start times are equal.
    `registered`: the agent's own text for the start time. Its form on macOS is not known: there any
    process whose command line (`words`) has the agent's name is accepted."""
    return str(start) == registered or (not registered.isdecimal() and b"claude" in words)


def pids() -> list[int]:
    """Return all processes that this one can see."""
    found: list[int] = _psutil().pids()
    return found


def children() -> list[int]:
    """Return the direct children of this process, ended ones included."""
    me = os.getpid()
    return [pid for pid in pids() if (known := stat(pid)) and known[1] == me]


def command(pid: int, most: int = -1) -> bytes:
    """Return the words of a process's command line, each ended by NUL, up to `most` bytes. Raises
    OSError."""
    with _as_os_errors():
        words = _psutil().Process(pid).cmdline()
    whole = b"".join(os.fsencode(word) + b"\0" for word in words)
    if most < 0:
        return whole
    return whole[:most]


def variables(pid: int) -> bytes:
    """Return the environment that a process was started with, each variable ended by NUL. Raises
    OSError. macOS shows none of its own programs' (those below /bin and /usr/bin)."""
    with _as_os_errors():
        found = _psutil().Process(pid).environ()
    return b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in found.items())


def name(pid: int) -> str:
    """Return the short name of a process's program. Raises OSError."""
    with _as_os_errors():
        return str(_psutil().Process(pid).name())


def user(pid: int) -> int:
    """Return the user id of a process. Raises OSError."""
    with _as_os_errors():
        return int(_psutil().Process(pid).uids().effective)


def program(pid: int) -> tuple[int, int]:
    """Return device and inode of the file that a process executes. Raises OSError."""
    with _as_os_errors():
        found = os.stat(_psutil().Process(pid).exe())
    return found.st_dev, found.st_ino


def current_directory(pid: int) -> str:
    """Return the current directory of a process. Raises OSError."""
    with _as_os_errors():
        return str(_psutil().Process(pid).cwd())


def open_files(pid: int) -> Iterator[str]:
    """Yield the paths of the files that a process has open. Raises OSError."""
    with _as_os_errors():
        found = _psutil().Process(pid).open_files()
    for each in found:
        yield each.path


def memory(pid: int) -> int:
    """Return the resident memory of a process in bytes. Raises OSError."""
    with _as_os_errors():
        return int(_psutil().Process(pid).memory_info().rss)


# --- facts of the machine


def holders_of_lock(path: str) -> list[int]:
    """Return the processes that may hold a flock(2) on the file. No portable interface names the
    holders, so every process that has the file open counts."""
    try:
        wanted = os.stat(path)
    except OSError:
        return []
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if pid != os.getpid() and any(_is_same(each, wanted) for each in open_files(pid)):
                found.append(pid)
    return sorted(found)


def _is_same(path: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), wanted)
    except OSError:
        return False


def mounts(table: str | os.PathLike[str] = "") -> list[tuple[str, str]]:
    """Return mount point and file system type of all mounts. Raises OSError."""
    with _as_os_errors():
        found = _psutil().disk_partitions(all=True)
    return [(each.mountpoint, each.fstype) for each in found]


# --- another process, held


class PolledHandle:
    """One process, identified by its id and start time. A signal is sent by id, just after a look
    at the start time. Another process could get it only if all ids were used up between the two."""

    def __init__(self, pid: int, start: int) -> None:
        self._pid, self._start = pid, start

    def wait(self, timeout_s: float | None) -> bool:
        """Return whether the process ends within the time (seconds; None: no limit)."""
        if timeout_s is None:
            until = float("inf")
        else:
            until = boottime() + timeout_s
        if timeout_s != 0 and hasattr(select, "kqueue"):
            _wait_by_kqueue(self._pid, timeout_s)
        while not self._has_ended():
            left = until - boottime()
            if left <= 0:
                return False
            time.sleep(min(POLL_S, left))
        return True

    def _has_ended(self) -> bool:
        known = stat(self._pid)
        return known is None or is_dead(known) or known[3] != self._start

    def send(self, number: int) -> None:
        """Send a signal. Raises OSError."""
        if self._has_ended():
            raise ProcessLookupError
        os.kill(self._pid, number)

    def close(self) -> None:
        pass


def _wait_by_kqueue(pid: int, timeout_s: float | None) -> None:
    """Wait until the process exits or the time is over (kqueue(2), EVFILT_PROC)."""
    events: Any = select  # the types of this module differ with the platform
    queue = events.kqueue()
    try:
        how = events.KQ_EV_ADD | events.KQ_EV_ONESHOT
        event = events.kevent(pid, events.KQ_FILTER_PROC, how, events.KQ_NOTE_EXIT)
        with contextlib.suppress(ProcessLookupError):
            queue.control([event], 1, timeout_s)
    finally:
        queue.close()


Handle = PolledHandle


def open_process(pid: int) -> Handle | None:
    """Return a handle of the process with this id, which the caller checks and closes; None if it
    is gone."""
    known = stat(pid)
    if known is None:
        return None
    return PolledHandle(pid, known[3])


# --- the marks that an attempt's processes inherit


def hand_down_limit(value: int) -> None:
    """Do nothing: only Linux has a value that is handed down and that no program removes by
    accident."""


def carries_limit(pid: int, value: int) -> bool:
    """Return False: no process can inherit such a value here."""
    return False


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def session_families(family: Collection[int]) -> set[int]:
    """Return more processes that belong to these because they share a session. If the leader of a
    session is among these, the whole session was started below them."""
    leaders = {pid for pid in family if _session(pid) == pid}
    if leaders:
        return {pid for pid in pids() if _session(pid) in leaders}
    return set()


class MarkedOffspring:
    """Everything below a shim, as the shim sees it: processes that carry the mark, descend from the
    shim, share a session with its agent, or were seen below it before."""

    def __init__(self, mark: str) -> None:
        self._entry = f"{MARK}={mark}".encode()
        self._seen: dict[int, int] = {}
        """Start times of the processes that were seen below, by id."""
        self._leaders: dict[int, int] = {}
        """Start times, by id, of the processes that lead a session in which something still
        runs."""
        self._noted = 0.0

    def note(self) -> None:
        """Remember the processes that run below now. They may lose their parent before they have to
        be ended."""
        if boottime() - self._noted >= _NOTE_S:
            self._look(marks=False)
            self._noted = boottime()

    def left(self, alive: bool, spared: Collection[int] = ()) -> tuple[bool, list[int]]:
        """Return whether anything is left, and the processes to signal. `alive`: whether this
        process has a child."""
        found = self._look(marks=True)
        if spared:
            known = {pid: each for pid in found if (each := stat(pid))}
            found -= {*spared, *_descendants({*spared}, known)}
        return alive or bool(found), sorted(found)

    def orphans(self, below: dict[int, list[int]], leader: int) -> list[int]:
        """Return the processes that left the leader's tree. `below`: children by parent."""
        family, todo = {leader}, [leader]
        while todo:
            more = below.get(todo.pop(), [])
            family.update(more)
            todo += more
        return sorted(self._look(marks=True) - family)

    def _look(self, *, marks: bool) -> set[int]:
        """Return the live processes of the family, and remember them. `marks`: also read all
        environments, which takes longer."""
        me = os.getpid()
        known = {pid: found for pid in pids() if (found := stat(pid)) and not is_dead(found)}
        known.pop(me, None)
        sessions = {pid: _session(pid) for pid in known}
        # A free id can be given to a stranger, so ended processes are forgotten at once.
        starts = {pid: found[3] for pid, found in known.items()}
        self._seen = {pid: at for pid, at in self._seen.items() if starts.get(pid) == at}
        running = set(sessions.values())
        self._leaders = {
            pid: at
            for pid, at in self._leaders.items()
            if pid in running and starts.get(pid, at) == at
        }
        mine = {pid for pid in known if pid in self._seen or sessions[pid] in self._leaders}
        if marks:
            mine |= {pid for pid in known if self._carries_mark(pid)}
        mine |= _descendants({me, *mine}, known)
        self._seen |= {pid: starts[pid] for pid in mine}
        self._leaders |= {pid: starts[pid] for pid in mine if sessions[pid] == pid}
        return mine

    def _carries_mark(self, pid: int) -> bool:
        try:
            return self._entry in variables(pid).split(b"\0")
        except OSError:
            return False


Offspring = MarkedOffspring


def _descendants(tops: set[int], known: dict[int, tuple[str, int, int, int]]) -> set[int]:
    """Return the processes that descend from these."""
    family, found = set(tops), set[int]()
    while more := {pid for pid, each in known.items() if each[1] in family} - family:
        family |= more
        found |= more
    return found


# --- this process


def adopt_orphans() -> None:
    """Do nothing: only Linux lets a process inherit the orphans below it. `Offspring` searches for
    them instead."""


def settle_groups() -> None:
    """Do nothing: `run_as`, the only source of a service's group, is refused on these systems."""


def close_from(lowest: int) -> None:
    """Close all descriptors of this process from a number on."""
    os.closerange(lowest, min(os.sysconf("SC_OPEN_MAX"), _MOST_DESCRIPTORS))


def environment() -> dict[bytes, bytes]:
    """Return the environment that this process was given: Python adds LC_CTYPE to os.environ under
    the C locale (PEP 538)."""
    found = {name: value for name, value in os.environb.items() if name}
    found.pop(b"PERDURE_HOST", None)  # set by the shim itself, see `shim_arguments`
    with contextlib.suppress(OSError):
        given = dict(each.split(b"=", 1) for each in variables(os.getpid()).split(b"\0") if each)
        if given and b"LC_CTYPE" not in given:
            found.pop(b"LC_CTYPE", None)
        elif given:
            found[b"LC_CTYPE"] = given[b"LC_CTYPE"]
    return found


def shim_arguments() -> tuple[str, ...]:
    """Return the command-line arguments that make a shim or keeper use this module: the directory
    of psutil, because the program is started without the packages of the site."""
    found = find_spec("psutil")
    assert found is not None and found.origin is not None
    return (os.path.dirname(os.path.dirname(found.origin)),)  # noqa: PTH120


def forbid_reading() -> None:
    """Do nothing: no portable interface hides a process from others of its user."""


def wipe_variables(names: Collection[str]) -> None:
    """Do nothing: the place of the environment in memory is known on Linux alone."""


_woken: list[int] = []


def wait_signal(numbers: Collection[int], timeout_s: float) -> int:
    """Wait for one of these signals, which are blocked. Return it, or 0 when the time is over.

    macOS has no sigtimedwait(2). So during the wait the signals are unblocked, with handlers that
    do nothing, and Python writes their numbers to a pipe.
    """
    if not _woken:
        read, write = pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        _woken.append(read)
    for number in numbers:
        if signal.getsignal(number) is not _nothing:
            signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        select.select(_woken, [], [], timeout_s)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        arrived = os.read(_woken[0], 4096)
    except BlockingIOError:
        return 0
    if signal.SIGTERM in arrived:
        return signal.SIGTERM
    if arrived:
        return arrived[-1]
    return 0


def _nothing(number: int, frame: object) -> None:
    pass


def pipe() -> tuple[int, int]:
    """Return a new pipe that no other program inherits."""
    return os.pipe()  # Python makes its descriptors non-inheritable (PEP 446)


def sync(fd: int) -> None:
    """Make a file's content durable. Raises OSError. On macOS fsync(2) writes only to the drive's
    cache. fcntl(2) with F_FULLFSYNC writes to the drive, but some file systems refuse it."""
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)
