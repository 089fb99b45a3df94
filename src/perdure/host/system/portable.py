"""Back end for any POSIX system: psutil, kqueue where it exists, sessions, and a mark in the
environment.

This module itself does not read /proc or call prctl(2), but psutil may. docs/reference/platforms.md
lists the guarantees that only Linux can give. psutil is imported at the first call, because loading
it takes longer than everything else that a shim loads.
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
"""Maximum time between two checks of the agent by its shim, in seconds. A process that has been a
descendant of the agent for that long has been recorded. It is then found even if it leaves the
tree."""
_NOTE_S = 0.2
"""Minimum time between two recordings of the descendants, in seconds."""
POLL_S = 0.02
"""Poll interval for the end of a process on systems without kqueue, in seconds."""
_PARTS = 100
"""Number of units of a start time in one second: start times are in hundredths of a second."""
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
    """Return why perdure cannot work on this system and what to do about it; None if it can
    work."""
    if find_spec("psutil") is not None:
        return None
    return (
        f"perdure needs the library psutil on {sys.platform}, to see which processes are alive",
        "install it: python -m pip install psutil",
    )


# --- clocks and identity


def boottime() -> float:
    """Return the time, in seconds, of a clock that never jumps. It includes suspended time on Linux
    and macOS."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _start_clock() -> float:
    """Return the current time of the clock that psutil uses for start times, in seconds. On Linux
    it counts from boot; elsewhere it is wall-clock time."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return boottime()
    return time.time()


def as_start(moment: float) -> int:
    """Convert a time of `boottime` to the unit of a process's start time."""
    return int((moment + _start_clock() - boottime()) * _PARTS)


def age(start: int) -> float:
    """Return the age, in seconds, of a process with this start time."""
    return _start_clock() - start / _PARTS


def boot_id() -> str:
    """Return the kernel's id of the current boot, if sysctl(3) provides one. On other systems,
    return a constant. The start times of these systems are wall-clock times, so pid and start time
    identify a process across boots."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        read = ctypes.CDLL(None).sysctlbyname
        size = ctypes.c_size_t(64)
        room = ctypes.create_string_buffer(size.value)
        if read(b"kern.bootsessionuuid", room, ctypes.byref(size), None, 0) == 0:
            return room.value.decode("ascii", "replace").lower()
    return "portable"


def namespace() -> str:
    """Return "", because there are no pid namespaces."""
    return ""


# --- facts of one process


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Convert psutil's exceptions in the block to the corresponding OSError."""
    psutil = _psutil()
    try:
        yield
    except psutil.AccessDenied as error:
        raise PermissionError(str(error)) from None
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(str(error)) from None


def stat(pid: int | str) -> tuple[str, int, int, int] | None:
    """Return state, parent, number of threads and start time (hundredths of a second) of a process;
    None if it is gone. State Z means that it has ended and was not reaped. The pid `self` stands
    for this process."""
    psutil = _psutil()
    try:
        process = psutil.Process(os.getpid() if pid == "self" else int(pid))
        with process.oneshot():
            # `create_time` changes when the system's clock is set; the second part of `_ident` does
            # not.
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
    """Return whether a process has ended and only has to be reaped. `known`: result of `stat`. If
    only the first thread has ended and other threads still run, the process is alive."""
    state, _, threads, _ = known
    return state in "ZX" and threads <= 1


def is_started_with(start: int, registered: str, words: bytes) -> bool:
    """Return whether a process is the one that an agent recorded in one of its own files. The start
    times are compared. `registered`: the start time as the agent wrote it. On macOS its format is
    unknown. If it is not a number, any process whose command line (`words`) contains the agent's
    name is accepted."""
    return str(start) == registered or (not registered.isdecimal() and b"claude" in words)


def pids() -> list[int]:
    """Return the pids of all processes that this process can see."""
    found: list[int] = _psutil().pids()
    return found


def children() -> list[int]:
    """Return the pids of the direct children of this process, including ended ones."""
    me = os.getpid()
    return [pid for pid in pids() if (known := stat(pid)) and known[1] == me]


def command(pid: int, most: int = -1) -> bytes:
    """Return the command line of a process, at most `most` bytes. Each argument ends with NUL.
    Raises OSError."""
    with _as_os_errors():
        words = _psutil().Process(pid).cmdline()
    whole = b"".join(os.fsencode(word) + b"\0" for word in words)
    if most < 0:
        return whole
    return whole[:most]


def variables(pid: int) -> bytes:
    """Return the environment that a process was started with. Each variable ends with NUL. Raises
    OSError. macOS hides the environment of its own programs (those below /bin and /usr/bin)."""
    with _as_os_errors():
        found = _psutil().Process(pid).environ()
    return b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in found.items())


def name(pid: int) -> str:
    """Return the name of a process's program. Raises OSError."""
    with _as_os_errors():
        return str(_psutil().Process(pid).name())


def user(pid: int) -> int:
    """Return the user id of a process. Raises OSError."""
    with _as_os_errors():
        return int(_psutil().Process(pid).uids().effective)


def program(pid: int) -> tuple[int, int]:
    """Return device and inode of the program file of a process. Raises OSError."""
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
    """Return the pids of all other processes that have the file open. One of them may hold a
    flock(2) on it, but no portable interface says which."""
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


# --- handles of other processes


class PolledHandle:
    """A handle of a process, identified by pid and start time. `send` checks the start time
    immediately before it sends a signal by pid. Another process could only get the signal if all
    pids were used up between the two calls."""

    def __init__(self, pid: int, start: int) -> None:
        self._pid, self._start = pid, start

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the process ends. Return False if that takes longer than `timeout_s` seconds
        (None: no limit)."""
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
        """Send a signal to the process. Raises OSError."""
        if self._has_ended():
            raise ProcessLookupError
        os.kill(self._pid, number)

    def close(self) -> None:
        pass


def _wait_by_kqueue(pid: int, timeout_s: float | None) -> None:
    """Wait until the process exits or the timeout has passed (kqueue(2), EVFILT_PROC)."""
    events: Any = select  # typed as Any, because type checkers know kqueue only on some platforms
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
    """Return a handle of the process with this id; None if there is none. The caller closes it, and
    checks that it is the expected process."""
    known = stat(pid)
    if known is None:
        return None
    return PolledHandle(pid, known[3])


# --- the marks that an attempt's processes inherit


def hand_down_limit(value: int) -> None:
    """Do nothing. Only Linux has a resource limit that can carry the mark."""


def carries_limit(pid: int, value: int) -> bool:
    """Return False, because no resource limit carries the mark on these systems."""
    return False


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def session_families(family: Collection[int]) -> set[int]:
    """Return the pids of processes that belong to an attempt because they share a session with one
    of its known processes (`family`). Only sessions whose leader is in `family` count: all their
    processes descend from the leader."""
    leaders = {pid for pid in family if _session(pid) == pid}
    if leaders:
        return {pid for pid in pids() if _session(pid) in leaders}
    return set()


class MarkedOffspring:
    """The descendants of a shim, from the shim's point of view. A process counts if it carries the
    mark, descends from the shim, was seen as a descendant before, or is in a session whose leader
    counts or counted."""

    def __init__(self, mark: str) -> None:
        self._entry = f"{MARK}={mark}".encode()
        self._seen: dict[int, int] = {}
        """Start times, by pid, of the descendants that were seen."""
        self._leaders: dict[int, int] = {}
        """Start times, by pid, of descendants that lead or led a session in which a process is
        still running."""
        self._noted = 0.0

    def note(self) -> None:
        """Record the descendants that are running now. If a parent ends later, its children can no
        longer be found as descendants, but the record still has them."""
        if boottime() - self._noted >= _NOTE_S:
            self._look(marks=False)
            self._noted = boottime()

    def left(self, alive: bool, spared: Collection[int] = ()) -> tuple[bool, list[int]]:
        """Return whether any descendant is left, and which processes to signal. `alive`: whether
        this process has a child. `spared`: pids of processes that must not be signaled and do not
        count, nor do their descendants."""
        found = self._look(marks=True)
        if spared:
            known = {pid: each for pid in found if (each := stat(pid))}
            found -= {*spared, *_descendants({*spared}, known)}
        return alive or bool(found), sorted(found)

    def orphans(self, below: dict[int, list[int]], leader: int) -> list[int]:
        """Return the pids of the descendants of `leader` that are no longer below it in the process
        tree. `below`: the children of each process."""
        family, todo = {leader}, [leader]
        while todo:
            more = below.get(todo.pop(), [])
            family.update(more)
            todo += more
        return sorted(self._look(marks=True) - family)

    def _look(self, *, marks: bool) -> set[int]:
        """Return the descendants that are alive, and record them. `marks`: also search the
        environments of all processes for the mark, which takes longer."""
        me = os.getpid()
        known = {pid: found for pid in pids() if (found := stat(pid)) and not is_dead(found)}
        known.pop(me, None)
        sessions = {pid: _session(pid) for pid in known}
        # The pid of an ended process may be reused, so ended processes are removed from the record.
        starts = {pid: found[3] for pid, found in known.items()}
        self._seen = {pid: at for pid, at in self._seen.items() if starts.get(pid) == at}
        running = set(sessions.values())
        leaders = {}
        for pid, at in self._leaders.items():
            if pid in running and starts.get(pid, at) == at:
                leaders[pid] = at
        self._leaders = leaders
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
    """Return the descendants of the processes `tops`. `known`: results of `stat` by pid."""
    family, found = set(tops), set[int]()
    while more := {pid for pid, each in known.items() if each[1] in family} - family:
        family |= more
        found |= more
    return found


# --- this process


def adopt_orphans() -> None:
    """Do nothing. Only on Linux can a process inherit orphans. On other systems, `Offspring`
    searches for them."""


def settle_groups() -> None:
    """Do nothing. Only `run_as` gives a process the service's group, and these systems do not
    support `run_as`."""


def close_from(lowest: int) -> None:
    """Close all descriptors of this process from the number `lowest` on."""
    os.closerange(lowest, min(os.sysconf("SC_OPEN_MAX"), _MOST_DESCRIPTORS))


def environment() -> dict[bytes, bytes]:
    """Return the environment that this process was started with. It may differ from os.environ, to
    which Python adds LC_CTYPE under the C locale (PEP 538)."""
    found = {name: value for name, value in os.environb.items() if name}
    found.pop(b"PERDURE_HOST", None)  # set by the shim itself (see `shim_arguments`)
    with contextlib.suppress(OSError):
        given = dict(each.split(b"=", 1) for each in variables(os.getpid()).split(b"\0") if each)
        if given and b"LC_CTYPE" not in given:
            found.pop(b"LC_CTYPE", None)
        elif given:
            found[b"LC_CTYPE"] = given[b"LC_CTYPE"]
    return found


def shim_arguments() -> tuple[str, ...]:
    """Return additional command-line arguments for a shim or keeper that uses this back end: the
    directory of psutil. The program is started without site-packages, so it would not find
    psutil."""
    found = find_spec("psutil")
    assert found is not None and found.origin is not None
    return (os.path.dirname(os.path.dirname(found.origin)),)  # noqa: PTH120


def forbid_reading() -> None:
    """Do nothing. No portable interface hides a process from others of its user."""


def wipe_variables(names: Collection[str]) -> None:
    """Do nothing. The position of the environment in memory is known only on Linux."""


_woken: list[int] = []


def wait_signal(numbers: Collection[int], timeout_s: float) -> int:
    """Wait for one of these signals, which must be blocked. Return its number, or 0 after the
    timeout.

    macOS has no sigtimedwait(2). So the signals are unblocked during the wait, with handlers that
    do nothing, and Python writes the signal numbers to a pipe.
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
    """Return the read and write ends of a new pipe, which other programs do not inherit."""
    return os.pipe()  # not inherited by default in Python (PEP 446)


def sync(fd: int) -> None:
    """Flush a file's content to the disk. Raises OSError. On macOS, fsync(2) writes only to the
    drive's cache, and fcntl(2) with F_FULLFSYNC writes to the drive. fsync(2) is used where
    F_FULLFSYNC is missing or fails."""
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)
