"""The parent of one agent: it outlives its supervisor, holds the workspace lock, and knows for
certain how the agent ended.

`perdure.host.process.start` runs this file as `python -I -S shim.py DIRECTORY`, in a session of its
own. It stands alone (standard library only) so that it starts in milliseconds and stays small.
DIRECTORY is the attempt's own; in it lie

    launch      read: deadline, grace, output cap, mark, cwd and argv, separated by NUL; locked by
    this process while it lives stdin       read: what the agent gets as its input lease       read:
    until when the agent may work without another word of its supervisor, and when it is killed
    after that (seconds
                on the boot clock); there only where several hosts share a database
    cause       read: the word for `exit.json`, where a supervisor wrote one before SIGTERM
    leftover    read: what becomes of processes that outlive the agent: `end`, `keep` or `wait`
    kept        read: the processes that are not ended with the agent, where only some are kept
    shim.json   written before the agent starts: who this process is agent.json  written when the
    agent has started stdout, stderr   the agent's output, appended to by the agent itself: no pipe
    that could break, fill or stay open exit.json   written last, when nothing of the attempt lives
    any more

What it guarantees: "exit.json exists" implies that the agent and everything that it ever started
have ended, whatever they did to get away (own session, double fork, empty environment, closed
files); only what `leftover` and `kept` spare runs on. As a child subreaper this process inherits
every orphan below it, so the tree is empty exactly when there is no child left to wait for. The
lock, an open file description that the supervisor has already locked, comes in as descriptor 4, is
not passed on, and so lives exactly as long as this process.

SIGTERM means stop: TERM to the agent, the grace, then KILL to all. All other signals that can be
blocked are blocked: the supervisor may vanish with its terminal. The environment arrives as this
process's own and goes to the agent unchanged; it is never written down.
"""

# ruff: noqa: PTH104, PTH110, PTH123, PTH208 (pathlib would double the start-up time)
from __future__ import annotations

import os
import resource
import signal
import sys
import time

LAUNCH_FD = 3
"""The file `launch`, locked by the supervisor: whoever finds it unlocked knows that no shim lives,
nor is just starting."""
LOCK_FD = 4
ORPHAN_GRACE_S = 2.0
"""What processes that the agent left behind get between TERM and KILL."""
OVER_GRACE_S = 1.0
"""The longest grace of an agent whose turn is over, and of what it left behind."""
SETTLE_S = 0.1
"""Time for the agent's own helpers to end with it, before they count as left behind."""
OVER = "over"
"""The cause of an end where the agent's turn was over and the agent did not end by itself."""
COMMAND_CAP = 500
LEFT_CAP = 50
"""Number of processes that `exit.json` names."""
FLOOD_RATE = 2 * 1024**3
"""Bytes per second that no agent writes faster than: it bounds how long one may go without looking
at the sizes."""
RLIMIT_LOCKS = 10
"""A resource limit that Linux has not enforced since 2.4.25, but still hands down to every child
(getrlimit(2)). It carries the attempt's mark where the environment cannot: no `env -i`, setsid or
exec takes it away."""
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38


def boottime() -> float:
    """Seconds on the clock that counts suspended time too and never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write_once(name: str, text: str) -> None:
    """A file in the current directory, there whole or not at all; it and its name survive a power
    cut. Raises OSError."""
    fd = os.open(name + ".part", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        # In place, so that the blocks that were reserved for it serve on a full disk.
        os.pwrite(fd, text.encode(), 0)
        os.ftruncate(fd, len(text.encode()))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(name + ".part", name)
    fd = os.open(".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def stat(pid: int | str) -> tuple[str, int, int, int] | None:
    """State, parent, threads and start time (clock ticks since boot) of a process, from
    /proc/PID/stat; None if gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[17]), int(fields[19])


def pids() -> list[int]:
    """All processes that this one can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def children() -> list[int]:
    """The direct children of this process, ended ones included. Only this process reaps them: the
    ids are certain."""
    try:
        with open("/proc/thread-self/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid in pids() if (known := stat(pid)) and known[1] == os.getpid()]


def reap(leader: int) -> tuple[bool, int | None]:
    """Collects all ended children. Returns (is there any child left, the leader's wait status if it
    was among them)."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False, status
        if pid == 0:
            return True, status
        if pid == leader:
            status = ended


def watch(
    leader: int, outputs: tuple[int, int], deadline_s: float, grace_s: float, cap: int
) -> tuple[str, int]:
    """Waits until the leader has ended, and ends it where it must be. Returns the cause and the
    wait status."""
    cause, kill_at = "exited", float("inf")
    deadline = boottime() + deadline_s if deadline_s > 0 else float("inf")
    stop_asked = False
    while True:
        status = reap(leader)[1]
        if status is not None:
            # A stop that came just before the end was the reason for it.
            asked = cause == "exited" and (stop_asked or signal.SIGTERM in signal.sigpending())
            return stop_word() if asked else cause, status
        now = boottime()
        until, end_by = lease(now)
        if cause != "lapsed" and now >= until:
            # Another host takes the task over soon: there must be nothing left of it here by then.
            if kill_at > end_by:
                os.kill(leader, signal.SIGTERM)
            cause, deadline, kill_at = "lapsed", float("inf"), min(kill_at, end_by)
        room = cap - max(os.fstat(fd).st_size for fd in outputs)
        if cause == "exited" and (stop_asked or now >= deadline):
            cause = stop_word() if stop_asked else "deadline"
            # An agent that is asked to end takes its commands with it.
            os.kill(leader, signal.SIGKILL if kept() else signal.SIGTERM)
            grace = min(grace_s, OVER_GRACE_S) if cause == OVER else grace_s
            deadline, kill_at = float("inf"), now + grace
        if room <= 0:
            cause, kill_at = "flooded" if cause == "exited" else cause, now
        if now >= kill_at:
            os.kill(leader, signal.SIGKILL)
        look = until if until > now else float("inf")
        pause = min(
            max(room / FLOOD_RATE, 0.02),
            1.0,
            *(max(at - now, 0.02) for at in (deadline, kill_at, look)),
        )
        got = signal.sigtimedwait({signal.SIGTERM, signal.SIGCHLD}, pause)
        stop_asked = stop_asked or (got is not None and got.si_signo == signal.SIGTERM)


def lease(now: float) -> tuple[float, float]:
    """Until when the agent may work, and when it is killed after that; for ever where nobody says
    so."""
    try:
        with open("lease", "rb") as file:
            until, end_by = map(float, file.read(64).split())
    except OSError:
        return float("inf"), float("inf")
    except ValueError:  # just being written
        return now + 1.0, now + 1.0
    return until, end_by


def stop_word() -> str:
    """Why the supervisor stops the agent: the word in the file `cause`, or `stopped`."""
    try:
        with open("cause", "rb") as file:
            word = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return "stopped"
    return word if word.isidentifier() else "stopped"


def leftover_word() -> str:
    """What becomes of processes that outlive the agent."""
    try:
        with open("leftover", "rb") as file:
            return file.read(16).decode("ascii", "replace").strip()
    except OSError:
        return "end"


def kept() -> frozenset[int]:
    """The processes that are not to be ended with the agent."""
    try:
        with open("kept", "rb") as file:
            return frozenset(int(word) for word in file.read().split())
    except (OSError, ValueError):
        return frozenset()


def below() -> list[int]:
    """The live processes below this one that have no child, which are the commands themselves and
    not the shells around them."""
    parents = {pid: known[1] for pid in pids() if (known := stat(pid)) and known[0] not in "ZX"}
    family, found = {os.getpid()}, set()
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
        found |= more
    return sorted(found - set(parents.values()))


def describe(found: list[int]) -> list[dict[str, object]]:
    """Command line and age of these processes."""
    ticks, now = os.sysconf("SC_CLK_TCK"), boottime()
    told: list[dict[str, object]] = []
    for pid in found[:LEFT_CAP]:
        known = stat(pid)
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read(4 * COMMAND_CAP).replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if known is not None and words.strip():
            age = round(now - known[3] / ticks, 1)
            told.append({"pid": pid, "command": words.strip()[:COMMAND_CAP], "age_s": age})
    return told


def outlived(deadline: float) -> tuple[list[dict[str, object]], int]:
    """What outlives the agent, and how many processes these are. Where that was asked for, their
    end is waited for first, up to the deadline or a stop."""
    if not reap(0)[0]:
        return [], 0
    until = boottime() + SETTLE_S
    if leftover_word() == "wait":
        until = deadline
    while (alive := reap(0)[0]) and boottime() < until:
        got = signal.sigtimedwait({signal.SIGTERM, signal.SIGCHLD}, 0.02)
        if got is not None and got.si_signo == signal.SIGTERM:
            break
    found = below() if alive else []
    return describe(found), len(found)


def sweep(grace_s: float, spared: frozenset[int] = frozenset()) -> int:
    """Ends everything that the leader left behind, until no child remains but the spared ones.
    Returns how many processes were signalled.

    Whoever ends hands its own children up to this process: looking at direct children alone reaches
    the whole tree.
    """
    kill_at = boottime() + grace_s
    asked: set[int] = set()
    while reap(0)[0]:
        kill = boottime() >= kill_at
        left = [pid for pid in children() if pid not in spared]
        if not left and spared:
            break
        for pid in left:
            if kill or pid not in asked:
                send(pid, signal.SIGKILL if kill else signal.SIGTERM)
            asked.add(pid)
        signal.sigtimedwait({signal.SIGCHLD}, 0.02)
    return len(asked)


def send(pid: int, number: int) -> None:
    """A signal to a child. One that runs as another user cannot be ended: then its own end is
    waited for."""
    try:
        os.kill(pid, number)
    except PermissionError:
        return


def spawn(argv: list[bytes], cwd: bytes, outputs: tuple[int, int]) -> int:
    """Starts the agent in a session of its own, with fresh signals and the environment that came
    in. Raises OSError."""
    stdin, here = os.open("stdin", os.O_RDONLY), os.open(".", os.O_RDONLY)
    files = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate((stdin, *outputs))]
    defaults = [
        number
        for number in signal.valid_signals()
        if number not in (signal.SIGKILL, signal.SIGSTOP)
    ]
    try:
        os.chdir(cwd)
        return os.posix_spawnp(
            argv[0],
            argv,
            environment(),
            file_actions=files,
            # Without the group of the service, if it runs with one (see perdure.host.privileges).
            resetids=True,
            setsid=True,
            setsigmask=(),
            setsigdef=defaults,
        )
    finally:
        os.fchdir(here)
        os.close(here)
        os.close(stdin)


def environment() -> dict[bytes, bytes]:
    """The environment as it came in: Python adds LC_CTYPE to os.environ under the C locale (PEP
    538)."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
        return {name: value for name, sign, value in pairs if name and sign}


def prepare(mark: bytes, locked: bool) -> None:
    """Makes this process what its children rely on, and says who it is before anything is
    started."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    if os.getgid() != os.getegid():
        # The kernel closes /proc/self to a process with two groups. No other one can look there:
        # their groups are not the same.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        # A program of the agent's making could otherwise have the service's group by its mode
        # (S_ISGID), if perdure can be made to copy it.
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    soft, hard = int(mark), resource.getrlimit(RLIMIT_LOCKS)[1]
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(RLIMIT_LOCKS, (soft, hard))
    for name in os.listdir("/proc/self/fd"):
        if int(name) > (LOCK_FD if locked else LAUNCH_FD) and os.path.exists(
            f"/proc/self/fd/{name}"
        ):
            os.close(int(name))
    known = stat("self")
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    word = os.environ["PERDURE_ATTEMPT"]
    started = known[3] if known else 0
    text = (
        f'{{"pid": {os.getpid()}, "starttime": {started}, "boot_id": "{boot}", "mark": "{word}"}}\n'
    )
    write_once("shim.json", text)
    for name in ("agent.json.part", "exit.json.part"):
        with open(name, "w", opener=private) as file:
            file.write(" " * 512)


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def main(directory: str) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    os.chdir(directory)
    with open(LAUNCH_FD, "rb", closefd=False) as file:
        deadline_s, grace_s, cap, mark, lock, cwd, *argv = file.read().split(b"\0")
    os.set_inheritable(LAUNCH_FD, False)
    if lock == b"1":
        os.set_inheritable(LOCK_FD, False)
    prepare(mark, lock == b"1")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    outputs = (os.open("stdout", flags, 0o600), os.open("stderr", flags, 0o600))
    try:
        leader = spawn(argv, cwd, outputs)
    except OSError as error:
        at = b"enter " + cwd if error.filename == cwd else b"start " + argv[0]
        complain(
            outputs[1], b"perdure: cannot %s: %s\n" % (at, (error.strerror or str(error)).encode())
        )
        conclude(
            outputs,
            126 if error.errno != 2 or error.filename == cwd else 127,
            None,
            "exited",
            now_ms(),
            0,
        )
        return
    known = stat(leader)
    try:
        started = known[3] if known else 0
        write_once("agent.json", f'{{"pid": {leader}, "starttime": {started}}}\n')
    except OSError as error:
        # An agent that nobody can see is not to run on.
        send(leader, signal.SIGKILL)
        complain(
            outputs[1],
            b"perdure: ended, because its record cannot be written: %s\n"
            % (error.strerror or str(error)).encode(),
        )
    began = boottime()
    cause, status = watch(leader, outputs, float(deadline_s), float(grace_s), int(cap))
    ended, code = now_ms(), os.waitstatus_to_exitcode(status)
    left: list[dict[str, object]] = []
    count, spared = 0, kept()
    if cause == "exited":
        left, count = outlived(began + float(deadline_s) if float(deadline_s) > 0 else float("inf"))
        if leftover_word() == "keep":
            spared = frozenset(children())
    killed = sweep(orphan_grace(cause, code, float(grace_s)), spared)
    conclude(
        outputs,
        code if code >= 0 else None,
        -code if code < 0 else None,
        cause,
        ended,
        killed,
        (left, count),
    )


def orphan_grace(cause: str, code: int, grace_s: float) -> float:
    """What processes that the agent left behind get between TERM and KILL."""
    if cause == "lapsed" or (code == -signal.SIGKILL and cause not in ("exited", OVER)):
        return 0
    return min(OVER_GRACE_S if cause == OVER else ORPHAN_GRACE_S, grace_s)


def complain(stderr: int, words: bytes) -> None:
    """Says something in the agent's stead, where there is room for it."""
    try:
        os.write(stderr, words)
    except OSError:
        return


def conclude(
    outputs: tuple[int, int],
    code: int | None,
    number: int | None,
    cause: str,
    ended: int,
    killed: int,
    left: tuple[list[dict[str, object]], int] = ([], 0),
) -> None:
    """Writes exit.json. The output is made durable first: a recorded end never lacks the words that
    came before it."""
    for fd in outputs:
        os.fdatasync(fd)
    fields = {"code": code, "signal": number, "leader_ended": ended, "survivors_killed": killed}
    known = {name: "null" if value is None else value for name, value in fields.items()}
    numbers = ", ".join(f'"{name}": {value}' for name, value in known.items())
    found = ""
    if left[1]:
        import json  # late: most agents leave nothing behind

        found = f', "left": {json.dumps(left[0])}, "left_count": {left[1]}'
    write_once("exit.json", f'{{{numbers}, "cause": "{cause}"{found}}}\n')


def now_ms() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)
