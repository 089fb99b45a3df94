"""The parent process of one agent. It outlives the supervisor, holds the workspace lock, and
reliably records how the agent ended.

`perdure.host.process.start` runs this file as `python -I -S shim.py DIRECTORY`, in a session of its
own. It needs only the standard library, so that it starts in milliseconds and uses little memory.
On systems other than Linux, it also needs psutil, whose directory is the second argument.
DIRECTORY belongs to the attempt and contains:

    launch      read: deadline, grace, output cap, mark, whether a lock is passed, cwd and argv,
                separated by NUL; locked by this process while it lives
    stdin       read: the agent's input
    lease       read: until when the agent may work unless the supervisor renews the lease, and when
                it is killed after that (seconds on the boot clock); if the agent must not work
                without a supervisor, also the supervisor's pid, start time and pid namespace;
                exists only if several hosts share a database, or for an agent with a budget
    cause       read: the cause for `exit.json`, if a supervisor wrote one before SIGTERM
    leftover    read: what to do with processes that outlive the agent: `end`, `keep` or `wait`
    kept        read: the processes that are not ended with the agent, if only some are kept
    shim.json   written before the agent starts: the identity of this process
    agent.json  written when the agent has started
    stdout, stderr
                the agent's output; the agent writes to these files itself, so there is no pipe
                that could break, fill up or stay open
    exit.json   written last, when nothing of the attempt runs any more

Guarantee: if exit.json exists, the agent and everything that it ever started have ended, whatever
they did to escape (own session, double fork, empty environment, closed files). The only exceptions
are processes that `leftover` and `kept` allow to continue. As a child subreaper, this process
inherits every orphan among its descendants, so its tree is empty exactly when it has no child left.
Systems other than Linux have no subreaper; `perdure.host.system.portable` describes which processes
are found on them. The supervisor passes the workspace lock as descriptor 4, an open file
description that is already locked. The agent does not inherit it, so the lock is held exactly as
long as this process lives.

SIGTERM means stop: TERM to the agent, the grace, then KILL to everything. All other signals that
can be blocked are blocked, because the supervisor may end together with its terminal. This process
is started with the agent's environment and passes it on; the environment is never written to a
file.

On Linux, `shim.c` is used instead if it was compiled when perdure was installed. Both do the same.
Change them together: tests/process/test_process_shims.py runs both on the same input and compares
what they write.
"""

# ruff: noqa: PTH100, PTH104, PTH120, PTH123 (pathlib would double the start-up time)
from __future__ import annotations

import errno
import os
import sys
import time

if __name__ == "__main__":  # started by its path, with only the standard library on the module path
    TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.append(TOP)
    # This process has the agent's environment. The agent's PERDURE_HOST must not choose the back
    # end of the shim.
    os.environ.pop("PERDURE_HOST", None)
    if len(sys.argv) > 2:
        # The second argument is the directory of psutil. It is passed only for the portable back
        # end. The agent does not get this PERDURE_HOST (see `system.environment`).
        sys.path.append(sys.argv[2])
        os.environ["PERDURE_HOST"] = "portable"

from perdure.host import system
from perdure.host.system import boottime, namespace, pids, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    # Imported from the C module: the enums of `signal` would take a third of the shim's start-up
    # time.
    import _signal as signal

LAUNCH_FD = 3
"""Number of the descriptor of the file `launch`, which the supervisor has locked. While the file is
locked, a shim is alive or starting."""
LOCK_FD = 4
ORPHAN_GRACE_S = 2.0
"""Time between TERM and KILL for processes that the agent left behind, in seconds."""
OVER_GRACE_S = 1.0
"""Maximum grace, in seconds, if the supervisor ends an agent because its turn is over. It applies
to the agent and to processes that the agent left behind."""
SETTLE_S = 0.1
"""Time for the agent's helper processes to exit after the agent, in seconds. Helpers that live
longer count as left behind."""
FOLLOWED_S = 0.1
"""Interval, in seconds, for checking whether the supervisor lives, if the agent must not work
without one. Such an agent has a budget, and without a supervisor the cost of its replies is not
counted."""
ALONE_GRACE_S = 1.0
"""Maximum grace, in seconds, for an agent that must not work without a supervisor and has lost its
supervisor."""
OVER = "over"
"""Cause of the end of an agent that does not exit by itself: the supervisor ended it because its
turn was over."""
COMMAND_CAP = 500
LEFT_CAP = 50
"""Maximum number of processes that `exit.json` names."""
FLOOD_RATE = 2 * 1024**3
"""Highest expected rate of an agent's output, in bytes per second. It decides how long the shim may
wait before it checks the size of the output again."""


def write_once(name: str, text: str) -> None:
    """Write a file in the current directory, completely or not at all, and make it durable. Raises
    OSError."""
    fd = os.open(name + ".part", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        # The blocks of the temporary file were reserved earlier and are overwritten in place, so
        # this works even if the disk is full.
        content = text.encode()
        if os.pwrite(fd, content, 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(fd, len(content))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(name + ".part", name)
    fd = os.open(".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def reap(leader: int) -> tuple[bool, int | None]:
    """Reap all ended children. Return whether any child is still running, and the wait status of
    `leader`, or None if this call did not reap `leader`."""
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
    leader: int,
    outputs: tuple[int, int],
    limits: tuple[float, float, int],
    offspring: system.Offspring,
) -> tuple[str, int]:
    """Wait until the agent (`leader`) has ended, and end it if a limit or a stop request requires
    that. Return the cause and the wait status. `limits`: deadline and grace in seconds, maximum
    size of an output file in bytes."""
    deadline_s, grace_s, cap = limits
    cause, kill_at = "exited", float("inf")
    deadline = boottime() + deadline_s if deadline_s > 0 else float("inf")
    stop_asked = False
    while True:
        status = reap(leader)[1]
        if status is not None:
            # If a stop request arrived just before the agent ended by itself, the request still
            # counts as the cause of the end.
            asked = cause == "exited" and (stop_asked or signal.SIGTERM in signal.sigpending())
            return stop_cause() if asked else cause, status
        offspring.note()
        now = boottime()
        until, end_by, followed = lease(now)
        if cause != "lapsed" and now >= until:
            # When the lease has expired, another host may take over the task. So no process of the
            # task may still run here.
            if kill_at > end_by:
                send(leader, signal.SIGTERM)
            cause, deadline, kill_at = "lapsed", float("inf"), min(kill_at, end_by)
        room = cap - max(os.fstat(fd).st_size for fd in outputs)
        if cause == "exited" and (stop_asked or now >= deadline):
            cause = stop_cause() if stop_asked else "deadline"
            # KILL if some commands have to be kept: on SIGTERM the agent would end its commands
            # too.
            send(leader, signal.SIGKILL if kept() else signal.SIGTERM)
            if cause == OVER:
                grace = min(grace_s, OVER_GRACE_S)
            else:
                grace = grace_s
            deadline, kill_at = float("inf"), now + grace
        if room <= 0:
            cause, kill_at = "flooded" if cause == "exited" else cause, now
        if now >= kill_at:
            send(leader, signal.SIGKILL)
        look = until if until > now else float("inf")
        pause = min(
            max(room / FLOOD_RATE, 0.02),
            FOLLOWED_S if followed else system.WATCH_S,
            *(max(at - now, 0.02) for at in (deadline, kill_at, look)),
        )
        got = system.wait_signal({signal.SIGTERM, signal.SIGCHLD}, pause)
        stop_asked = stop_asked or got == signal.SIGTERM


def lease(now: float) -> tuple[float, float, bool]:
    """Return three values: the time until which the agent may work, the time at which it is killed
    if it still runs, and whether it must not work without its supervisor.

    The times are in seconds on the boot clock. Without a lease, both are infinite. If the agent
    must not work without its supervisor and the supervisor is gone, the first time is now.
    """
    try:
        with open("lease", "rb") as file:
            until, end_by, *follower = file.read(128).split()
        limits = float(until), float(end_by)
        # The supervisor's process cannot be checked from a container with another pid namespace.
        if len(follower) != 3 or follower[2].decode() != namespace():
            return *limits, False
        if system.lives(int(follower[0]), int(follower[1])):
            return *limits, True
        return now, min(limits[1], now + ALONE_GRACE_S), True
    except OSError:
        return float("inf"), float("inf"), False
    except ValueError:  # The file is being written: allow one more second.
        return now + 1.0, now + 1.0, False


def stop_cause() -> str:
    """Return the cause that the supervisor wrote to the file `cause`; `stopped` if there is
    none."""
    try:
        with open("cause", "rb") as file:
            word = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return "stopped"
    if word.isidentifier():
        return word
    return "stopped"


def leftover_policy() -> str:
    """Return what to do with processes that outlive the agent: `end`, `keep` or `wait`."""
    try:
        with open("leftover", "rb") as file:
            return file.read(16).decode("ascii", "replace").strip()
    except OSError:
        return "end"


def kept() -> frozenset[int]:
    """Return the pids of processes that must not be ended with the agent."""
    try:
        with open("kept", "rb") as file:
            return frozenset(int(word) for word in file.read().split())
    except (OSError, ValueError):
        return frozenset()


def commands(tops: set[int]) -> list[int]:
    """Return the processes that are alive and have no children, out of `tops` and their
    descendants. These are the commands themselves, without the shells that started them."""
    parents = {pid: known[1] for pid in pids() if (known := stat(pid)) and known[0] not in "ZX"}
    family, found = {os.getpid(), *tops}, tops & set(parents)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
        found |= more
    return sorted(found - set(parents.values()))


def describe(found: list[int]) -> list[dict[str, object]]:
    """Return the pid, the command line and the age of each process, for at most `LEFT_CAP` of
    them."""
    told: list[dict[str, object]] = []
    for pid in found[:LEFT_CAP]:
        known = stat(pid)
        try:
            command = system.command(pid, 4 * COMMAND_CAP)
        except OSError:
            continue
        words = command.replace(b"\0", b" ").decode("utf-8", "replace")
        if known is not None and words.strip():
            age = round(system.age(known[3]), 1)
            told.append({"pid": pid, "command": words.strip()[:COMMAND_CAP], "age_s": age})
    return told


def remaining(
    offspring: system.Offspring, spared: frozenset[int] = frozenset()
) -> tuple[bool, list[int]]:
    """Reap ended children. Return whether any process of the attempt is still running, and the pids
    of the processes to signal. `spared`: pids of processes that are left alone."""
    return offspring.left(reap(0)[0], spared)


def outlived(deadline: float, offspring: system.Offspring) -> tuple[list[dict[str, object]], int]:
    """Return a description of the processes that outlived the agent, and their number. If
    `leftover` is `wait`, first wait until they have ended, at most until the deadline or a stop
    request."""
    if not remaining(offspring)[0]:
        return [], 0
    until = boottime() + SETTLE_S
    if leftover_policy() == "wait":
        until = deadline
    while (left := remaining(offspring))[0] and boottime() < until:
        if system.wait_signal({signal.SIGTERM, signal.SIGCHLD}, 0.02) == signal.SIGTERM:
            break
    found = commands(set(left[1])) if left[0] else []
    return describe(found), len(found)


def sweep(grace_s: float, offspring: system.Offspring, spared: frozenset[int] = frozenset()) -> int:
    """End everything that the agent left behind, until only the spared processes remain. Return the
    number of processes that were signaled."""
    kill_at = boottime() + grace_s
    asked: set[int] = set()
    while (found := remaining(offspring, spared))[0]:
        kill = boottime() >= kill_at
        if not found[1] and spared:
            break
        for pid in found[1]:
            if kill or pid not in asked:
                send(pid, signal.SIGKILL if kill else signal.SIGTERM)
            asked.add(pid)
        system.wait_signal({signal.SIGCHLD}, 0.02)
    return len(asked)


def send(pid: int, number: int) -> None:
    """Send a signal to a descendant of this process. Errors are ignored: a process of another user
    cannot be signaled, and the shim waits until it ends by itself."""
    try:
        os.kill(pid, number)
    except (PermissionError, ProcessLookupError):
        return


def spawn(argv: list[bytes], cwd: bytes, outputs: tuple[int, int]) -> int:
    """Start the agent in a session of its own, with default signal handlers and the environment
    that this process was started with. Return its pid. Raises OSError."""
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
            system.environment(),
            file_actions=files,
            # Drops the service's group, if this process has it (see perdure.host.privileges).
            resetids=True,
            setsid=True,
            setsigmask=(),
            setsigdef=defaults,
        )
    finally:
        os.fchdir(here)
        os.close(here)
        os.close(stdin)


def prepare(mark: bytes, locked: bool) -> None:
    """Set up what the agent inherits (mark, descriptors), make this process a subreaper, and write
    `shim.json`."""
    system.adopt_orphans()
    if os.getgid() != os.getegid():
        system.settle_groups()
    system.hand_down_limit(int(mark))
    system.close_from(1 + (LOCK_FD if locked else LAUNCH_FD))
    known, boot = stat("self"), system.boot_id()
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
        if error.filename == cwd:
            at = b"enter " + cwd
        else:
            at = b"start " + argv[0]
        write_error(
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
    offspring = system.Offspring(os.environ["PERDURE_ATTEMPT"])
    known = stat(leader)
    try:
        started = known[3] if known else 0
        write_once("agent.json", f'{{"pid": {leader}, "starttime": {started}}}\n')
    except OSError as error:
        # Without this record no supervisor could find the agent, so it must not run.
        send(leader, signal.SIGKILL)
        write_error(
            outputs[1],
            b"perdure: ended, because its record cannot be written: %s\n"
            % (error.strerror or str(error)).encode(),
        )
    began = boottime()
    limits = float(deadline_s), float(grace_s), int(cap)
    cause, status = watch(leader, outputs, limits, offspring)
    ended, code = now_ms(), os.waitstatus_to_exitcode(status)
    left: list[dict[str, object]] = []
    count, spared = 0, kept()
    if cause == "exited":
        if float(deadline_s) > 0:
            until = began + float(deadline_s)
        else:
            until = float("inf")
        left, count = outlived(until, offspring)
        if leftover_policy() == "keep":
            spared = frozenset(remaining(offspring)[1])
    killed = sweep(orphan_grace(cause, code, float(grace_s)), offspring, spared)
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
    """Return the time between TERM and KILL, in seconds, for processes that the agent left
    behind."""
    if cause == "lapsed" or (code == -signal.SIGKILL and cause not in ("exited", OVER)):
        return 0
    return min(OVER_GRACE_S if cause == OVER else ORPHAN_GRACE_S, grace_s)


def write_error(stderr: int, words: bytes) -> None:
    """Write a message of perdure to the agent's stderr file. Errors, such as a full disk, are
    ignored."""
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
    """Write exit.json. The output is flushed to the disk first, so if exit.json exists, the whole
    output is on the disk."""
    for fd in outputs:
        system.sync(fd)
    fields = {"code": code, "signal": number, "leader_ended": ended, "survivors_killed": killed}
    known = {name: "null" if value is None else value for name, value in fields.items()}
    numbers = ", ".join(f'"{name}": {value}' for name, value in known.items())
    found = ""
    if left[1]:
        import json  # imported late: most agents leave nothing behind

        found = f', "left": {json.dumps(left[0])}, "left_count": {left[1]}'
    write_once("exit.json", f'{{{numbers}, "cause": "{cause}"{found}}}\n')


def now_ms() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)
