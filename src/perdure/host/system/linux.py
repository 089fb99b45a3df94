"""Back end for Linux: processes by /proc, pidfds and prctl(2).

Every shim loads this module. So it imports only the standard library, and no module that loads
slowly.
"""

# ruff: noqa: PTH110, PTH115, PTH123, PTH208 (pathlib would double the start-up time of the shim)
from __future__ import annotations

import os
import resource
import select
import time

TYPE_CHECKING = False  # importing typing or collections.abc would double the start-up time
if TYPE_CHECKING:
    import signal
    from collections.abc import Collection, Iterator
else:
    # Imported from the C module: the enums of `signal` would take a third of the shim's start-up
    # time.
    import _signal as signal

# The interface of both back ends. test_portable.py checks that they are the same.
__all__ = [
    "WATCH_S",
    "Handle",
    "Offspring",
    "adopt_orphans",
    "age",
    "as_start",
    "boot_id",
    "boottime",
    "carries_limit",
    "children",
    "close_from",
    "command",
    "current_directory",
    "environment",
    "forbid_reading",
    "hand_down_limit",
    "holders_of_lock",
    "is_dead",
    "is_started_with",
    "memory",
    "mounts",
    "name",
    "namespace",
    "open_files",
    "open_process",
    "pids",
    "pipe",
    "problem",
    "program",
    "session_families",
    "settle_groups",
    "shim_arguments",
    "stat",
    "sync",
    "user",
    "variables",
    "wait_signal",
    "wipe_variables",
]

WATCH_S = 1.0
"""Maximum time between two checks of the agent by its shim, in seconds."""
RLIMIT_LOCKS = 10
"""A resource limit that children inherit, and that Linux has not enforced since 2.4.25
(getrlimit(2)). Its value marks the processes of an attempt. The environment also contains the mark,
but `env -i` clears the environment. The limit is not changed by `env -i`, setsid or exec."""
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38
ENVIRONMENT = 47
"""Index of `env_start` in /proc/PID/stat, among the fields after the process name
(proc_pid_stat(5), field 50)."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def problem() -> tuple[str, str] | None:
    """Return why perdure cannot work on this system and what to do about it; None if it can
    work."""
    if os.path.exists("/proc/self/stat"):
        return None
    return (
        "perdure needs /proc, which is not mounted here: it uses it to see which processes are "
        "alive",
        "Mount it: mount -t proc proc /proc",
    )


# --- clocks and identity


def boottime() -> float:
    """Return the time of the boot clock, in seconds. It includes suspended time and never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def as_start(moment: float) -> int:
    """Convert a time of the boot clock to clock ticks, the unit of a process's start time."""
    return int(moment * _TICKS)


def age(start: int) -> float:
    """Return the age, in seconds, of a process with this start time."""
    return boottime() - start / _TICKS


def boot_id() -> str:
    """Return the kernel's id of the current boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def namespace() -> str:
    """Return the number of this process's pid namespace; "" if it cannot be read. In another
    namespace, such as another container's, the same pid means another process."""
    try:
        return os.readlink("/proc/self/ns/pid").partition("[")[2].rstrip("]")
    except OSError:
        return ""


# --- facts of one process


def stat(pid: int | str) -> tuple[str, int, int, int] | None:
    """Return state, parent, number of threads and start time (clock ticks since boot) of a process,
    from /proc/PID/stat; None if it is gone. The pid `self` stands for this process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[17]), int(fields[19])


def is_dead(known: tuple[str, int, int, int]) -> bool:
    """Return whether a process has ended and is only waiting to be reaped. `known`: result of
    `stat`. If only the first thread has ended and other threads still run, the process is alive."""
    state, _, threads, _ = known
    return state in "ZX" and threads <= 1


def is_started_with(start: int, registered: str, words: bytes) -> bool:
    """Return whether a process is the one that an agent recorded in one of its own files. The start
    times are compared. `registered`: the start time as the agent wrote it, which is field 22 of
    /proc/PID/stat. `words`: the command line; this back end does not use it."""
    return str(start) == registered


def pids() -> list[int]:
    """Return the pids of all processes that this process can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def children() -> list[int]:
    """Return the pids of the direct children of this process, including ended ones. The pid of a
    child cannot be reused before this process reaps the child."""
    try:
        with open("/proc/thread-self/children", "rb") as file:
            return list(map(int, file.read().split()))
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid in pids() if (known := stat(pid)) and known[1] == os.getpid()]


def command(pid: int, most: int = -1) -> bytes:
    """Return the command line of a process, at most `most` bytes. Each argument ends with NUL.
    Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(most)


def variables(pid: int) -> bytes:
    """Return the environment that a process was started with. Each variable ends with NUL. Raises
    OSError."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()


def name(pid: int) -> str:
    """Return the name of a process's program, which the kernel shortens. Raises OSError."""
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().rstrip("\n")


def user(pid: int) -> int:
    """Return the user id of a process. Raises OSError."""
    return os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116


def program(pid: int) -> tuple[int, int]:
    """Return device and inode of the program file of a process. Raises OSError."""
    found = os.stat(f"/proc/{pid}/exe")  # noqa: PTH116
    return found.st_dev, found.st_ino


def current_directory(pid: int) -> str:
    """Return the current directory of a process. Raises OSError."""
    return os.readlink(f"/proc/{pid}/cwd")


def open_files(pid: int) -> Iterator[str]:
    """Yield the paths of the files that a process has open. Raises OSError."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue


def memory(pid: int) -> int:
    """Return the resident memory of a process in bytes. Raises OSError."""
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


# --- facts of the machine


def holders_of_lock(path: str) -> list[int]:
    """Return the pids of processes that hold a flock(2) on the file, according to /proc/locks.
    Return [] if the file or /proc/locks cannot be read."""
    try:
        wanted = os.stat(path)  # noqa: PTH116
        with open("/proc/locks", encoding="ascii") as file:
            held = file.read().splitlines()
    except OSError:
        return []
    fields = [line.split() for line in held if " FLOCK " in line and "->" not in line]
    found = set()
    for field in fields:
        if len(field) > 5 and field[5].rpartition(":")[2] == str(wanted.st_ino):
            found.add(int(field[4]))
    return sorted(pid for pid in found if pid > 0 and _has_open(pid, wanted))


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    """Return whether the process has this file open. Return True if its descriptors may not be
    read. This check is necessary because /proc/locks gives inode numbers, which are unique only
    within a device."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        return True
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), wanted):  # noqa: PTH116
                return True
        except OSError:
            continue
    return False


def mounts(table: str | os.PathLike[str] = "/proc/self/mountinfo") -> list[tuple[str, str]]:
    """Return mount point and file system type of all mounts, in the order of proc(5). If two have
    the same mount point, the later one hides the earlier one. Raises OSError."""
    # Not `splitlines`: it also splits at separators that the kernel does not escape.
    with open(table, "rb") as file:
        lines = [os.fsdecode(line).split(" ") for line in file.read().split(b"\n")]
    found = []
    for fields in lines:
        if "-" in fields[6:-1]:
            found.append((_unescape(fields[4]), fields[fields.index("-", 6) + 1]))
    return found


def _unescape(point: str) -> str:
    for code, character in (
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\043", "#"),
        ("\\134", "\\"),
    ):
        point = point.replace(code, character)
    return point


# --- handles of other processes


class Handle:
    """A pidfd of a process. As long as it is open, it cannot refer to another process with the same
    id."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the process ends. Return False if that takes longer than `timeout_s` seconds
        (None: no limit)."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else max(0, int(timeout_s * 1000))))

    def send(self, number: int) -> None:
        """Send a signal to the process. Raises OSError."""
        signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        os.close(self._fd)


def open_process(pid: int) -> Handle | None:
    """Return a handle of the process with this id; None if there is none. The caller closes it, and
    checks that it is the expected process."""
    try:
        return Handle(os.pidfd_open(pid))
    except OSError:
        return None


# --- the marks that an attempt's processes inherit


def hand_down_limit(value: int) -> None:
    """Set the resource limit that carries the mark, for this process and all processes that it
    starts. No program removes the limit by accident."""
    hard = resource.getrlimit(RLIMIT_LOCKS)[1]
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(RLIMIT_LOCKS, (value, hard))


def carries_limit(pid: int, value: int) -> bool:
    """Return whether a process has inherited this value of the resource limit. Return False if it
    belongs to another user or has ended."""
    try:
        return resource.prlimit(pid, RLIMIT_LOCKS)[0] == value
    except OSError:
        return False


def session_families(family: Collection[int]) -> set[int]:
    """Return the pids of processes that belong to an attempt because they share a session with one
    of its known processes (`family`). On Linux there are none, because the marks are enough."""
    return set()


class Offspring:
    """The descendants of a shim, from the shim's point of view. The shim is a child subreaper and
    inherits every orphan, so its tree is empty exactly when it has no child left."""

    def __init__(self, mark: str) -> None:
        pass

    def note(self) -> None:
        """Do nothing. Only the portable back end has to remember the agent's descendants."""

    def left(self, alive: bool, spared: Collection[int] = ()) -> tuple[bool, list[int]]:
        """Return whether any descendant is left, and which processes to signal. `alive`: whether
        this process has a child. `spared`: pids of processes that must not be signaled.

        It is enough to signal direct children: when one ends, its children become children of this
        process.
        """
        return alive, [pid for pid in children() if pid not in spared] if alive else []

    def orphans(self, below: dict[int, list[int]], leader: int) -> list[int]:
        """Return the pids of the descendants of `leader` that are no longer below it in the process
        tree. `below`: the children of each process."""
        return [pid for pid in below.get(os.getpid(), ()) if pid != leader]


# --- this process


def adopt_orphans() -> None:
    """Make this process a child subreaper, which inherits every orphan among its descendants.
    Raises OSError."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def settle_groups() -> None:
    """Prepare a process that has the service's group (`perdure.host.privileges`) for starting
    agents."""
    import ctypes

    # A process whose real and effective groups differ cannot read its own /proc/self. This setting
    # allows that again. Other processes still have no access, because their groups differ from this
    # process's.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    # From now on, the kernel ignores the setgid bit of programs that this process or its
    # descendants execute. Otherwise an agent could set the bit on a program that perdure copies,
    # and the copy, which has the service's group, would run with that group.
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def close_from(lowest: int) -> None:
    """Close all descriptors of this process from the number `lowest` on."""
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) >= lowest and os.path.exists(f"/proc/self/fd/{entry}"):
            os.close(int(entry))


def environment() -> dict[bytes, bytes]:
    """Return the environment that this process was started with. It may differ from os.environ, to
    which Python adds LC_CTYPE under the C locale (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
        return {name: value for name, sign, value in pairs if name and sign}


def shim_arguments() -> tuple[str, ...]:
    """Return additional command-line arguments for a shim or keeper that uses this back end:
    none."""
    return ()


def forbid_reading() -> None:
    """Prevent other processes of the same user from reading this process, until its next exec."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def wipe_variables(names: Collection[str]) -> None:
    """Overwrite variables in the memory area in which the kernel stored this process's
    environment."""
    import ctypes

    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[ENVIRONMENT]), int(fields[ENVIRONMENT + 1])
    if not start < end:  # the kernel does not report the addresses
        return
    at, wanted = start, set(map(os.fsencode, names))
    for entry in ctypes.string_at(start, end - start).split(b"\0"):
        if entry.partition(b"=")[0] in wanted:
            ctypes.memset(at, 0, len(entry))
        at += len(entry) + 1


def wait_signal(numbers: Collection[int], timeout_s: float) -> int:
    """Wait for one of these signals, which must be blocked. Return its number, or 0 after the
    timeout."""
    got = signal.sigtimedwait(numbers, timeout_s)
    if got is None:
        return 0
    return got.si_signo


def pipe() -> tuple[int, int]:
    """Return the read and write ends of a new pipe, which other programs do not inherit."""
    return os.pipe2(os.O_CLOEXEC)


def sync(fd: int) -> None:
    """Flush a file's content to the disk. Raises OSError."""
    os.fdatasync(fd)
