"""Starts an agent under its shim, and finds the agent again after its supervisor died.

Start and search rely on the lock on the file `launch`. The starting process takes the lock and the
shim inherits it, so the lock is never free while an agent is starting or alive.

`run_quick` runs a short command of perdure's own in the same way, and returns when the command and
all its descendants have ended.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from perdure.errors import Conflict, UsageError
from perdure.host import system
from perdure.host.process.child import Process, read_json, write
from perdure.host.process.identity import Identity, boot_id
from perdure.host.process.lines import tail
from perdure.host.process.orphans import COMPILED, SHIM, VARIABLE, limit_value, survivors
from perdure.host.shim import LAUNCH_FD, LOCK_FD
from perdure.host.system import IS_PORTABLE, boottime, namespace, shim_arguments, stat
from perdure.model import Command, OnLeftover

OUTPUT_CAP = 2 * 1024**3
"""Maximum size of stdout or stderr, in bytes. An agent that exceeds it is ended with the cause
`flooded`."""


def start(
    command: Command,
    *,
    directory: Path,
    cwd: Path,
    env: Mapping[str, str],
    mark: str,
    deadline_s: float,
    grace_s: float = 10.0,
    lock_fd: int | None = None,
    output_cap: int = OUTPUT_CAP,
    leftover: OnLeftover = OnLeftover.END,
) -> Process:
    """Start `command` in `cwd` under a shim that outlives this process. `directory` (0700) belongs
    to this attempt alone.

    The agent's environment consists of `env`, the variables of `command.env`, and the mark. A
    variable of `command.env` replaces one of the same name in `env`. `deadline_s` 0 means no
    deadline. `lock_fd` is a locked open file description, which the shim inherits; the caller
    closes its own descriptor afterwards, and never unlocks it. `leftover`: what to do with
    processes that outlive the agent.

    A program that cannot be started leads to an Exit with code 126 or 127 and the reason in its
    stderr. Raises Conflict if the directory was used before. Raises UsageError if the arguments or
    the environment cannot be passed to a program.
    """
    directory, cwd = directory.absolute(), cwd.absolute()
    whole_env = {**env, **command.env, VARIABLE: mark}
    check(command.argv, whole_env, mark)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    launch_fd = claim(directory)
    try:
        lock = "0" if lock_fd is None else "1"
        launch = (
            str(deadline_s),
            str(grace_s),
            str(output_cap),
            str(limit_value(mark)),
            lock,
            str(cwd),
            *command.argv,
        )
        os.ftruncate(launch_fd, 0)
        os.pwrite(launch_fd, b"\0".join(os.fsencode(field) for field in launch), 0)
        write(directory / "stdin", command.stdin)
        if leftover is not OnLeftover.END:
            write(directory / "leftover", leftover.encode())
        pid = _spawn_shim(directory, whole_env, launch_fd, lock_fd)
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        return _record_failed_start(directory, command.argv[0], error)
    finally:
        os.close(launch_fd)
    known = stat(pid)
    return Process(directory, Identity(boot_id(), pid, known[3] if known else 0), mark)


def hold(directory: Path, until: float, end_by: float, *, followed: bool = False) -> None:
    """Write the lease of the attempt's agent: until when it may work, and when it is killed after
    that, both in seconds on the boot clock. Each call replaces the lease. With `followed`, the
    agent is also ended as soon as this process has ended. The shim enforces the lease even if the
    caller dies. May be called before `start`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine = stat("self") if followed else None
    follower = f" {os.getpid()} {mine[3]} {namespace()}" if mine else ""
    write(directory / "lease", f"{until:.3f} {end_by:.3f}{follower}\n".encode(), whole=True)


def find(directory: Path) -> Process | None:
    """Return the attempt's process, alive or ended, no matter which process started it. Return None
    if no agent was ever started from this directory.

    Raises Conflict if another process is starting the agent and takes more than 10 s.
    """
    directory = directory.absolute()
    until = boottime() + 10
    while True:
        busy = is_locked(
            directory / "launch"
        )  # checked before the shim's files are read: they exist once the lock is free
        if found := _recorded(directory):
            return found
        if not busy:
            return None
        if boottime() > until:
            raise Conflict(
                f"another process has been starting an agent in {directory} for too long"
            )
        time.sleep(0.005)


def running(directory: Path) -> bool:
    """Return whether an agent of this directory is alive or is being started. Does not wait.

    The shim holds the lock on `launch` as long as it lives. Every container that has the directory
    can check this lock. With a kept agent, the attempt is running until `exit.json` exists or the
    keeper has ended.
    """
    if (directory / "exit.json").exists():
        return False
    found = _recorded(directory)
    if is_locked(directory / "launch") or (found is not None and found.alive()):
        return True
    # If the shim was killed, its agent may still be running.
    return found is not None and bool(found.mark) and not found.warm and bool(survivors(found.mark))


def launched(directory: Path) -> bool:
    """Return whether an agent was started in this directory: its shim has recorded the start, or
    the agent has written output.

    Both are missing if the shim was killed in the milliseconds between the start and the record.
    The caller then has to find out from the conversation whether the agent did anything.
    """
    said = any(
        (directory / name).exists() and (directory / name).stat().st_size
        for name in ("stdout", "stderr")
    )
    return said or (directory / "agent.json").exists() or (directory / "exit.json").exists()


def _recorded(directory: Path) -> Process | None:
    known = read_json(directory / "shim.json")
    if known:
        return Process(
            directory,
            Identity(known["boot_id"], known["pid"], known["starttime"]),
            known["mark"],
            warm=bool(known.get("warm")),
        )
    if (directory / "exit.json").exists():
        return Process(directory, None, "")
    return None


def claim(directory: Path) -> int:
    """Open and lock the file `launch` of an attempt that has not begun, and return its descriptor.
    Raises Conflict if an attempt has used the directory, or another process holds the lock."""
    fd = os.open(directory / "launch", os.O_RDWR | os.O_CREAT, 0o600)
    # Another `find` may hold the lock briefly. So may a child that another thread is starting: the
    # child has inherited the descriptor, and keeps it until its exec.
    for _ in range(400):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.005)
    else:
        os.close(fd)
        raise Conflict(f"an agent is already running in {directory}")
    if _recorded(directory):
        os.close(fd)
        raise Conflict(f"{directory} already belongs to an attempt")
    return fd


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of this file."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def compiled_shim() -> Path | None:
    """Return the compiled shim that was built from the installed `shim.c`. Return None if there is
    none, or if PERDURE_HOST chooses a shim in Python (`python`, `portable`)."""
    if IS_PORTABLE or os.environ.get(system.VARIABLE) == "python":
        return None
    return _built_shim()


@cache
def _built_shim() -> Path | None:
    """Return the program beside `shim.c` whose name contains the hash of that source; None if there
    is no such program. If the source has changed since the program was built, the name no longer
    matches, so a program of another source is never run."""
    try:
        source = SHIM.with_suffix(".c").read_bytes()
    except OSError:
        return None
    found = Path(f"{COMPILED}{source_hash(source)}")
    return found if os.access(found, os.X_OK) else None


def source_hash(source: bytes) -> str:
    """Return the part of the compiled shim's file name that identifies its source.
    packaging/shim_build.py computes this part in the same way."""
    return hashlib.sha256(source).hexdigest()[:16]


def _spawn_shim(
    directory: Path, env: Mapping[str, str], launch_fd: int, lock_fd: int | None
) -> int:
    """Start the compiled shim if there is one that this machine can execute; otherwise start the
    shim in Python. Return the shim's pid. Raises OSError."""
    compiled = compiled_shim()
    if compiled is not None:
        try:
            return spawn(directory, env, launch_fd, lock_fd, (str(compiled), str(directory)))
        except OSError as error:
            # The program was built for another processor, is on a file system that is mounted with
            # noexec, or has just been removed. The shim in Python is used instead.
            if error.errno not in (errno.ENOEXEC, errno.ENOENT, errno.EACCES, errno.EPERM):
                raise
    return spawn(directory, env, launch_fd, lock_fd, python_command(SHIM, directory))


def python_command(program: Path, directory: Path) -> tuple[str, ...]:
    """Return the argv that runs the shim or the keeper in Python."""
    return (sys.executable, "-I", "-S", str(program), str(directory), *shim_arguments())


def spawn(
    directory: Path,
    env: Mapping[str, str],
    launch_fd: int,
    other_fd: int | None,
    argv: tuple[str, ...],
) -> int:
    """Start the shim or the keeper in a session of its own, and return its pid. The new process
    starts with all signals blocked, so that no signal ends it before its handlers are installed.
    Raises OSError."""
    files: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_RDWR, 0),
        (
            os.POSIX_SPAWN_OPEN,
            2,
            directory / "shim.err",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            0o600,
        ),
    ]
    signals = signal.valid_signals()
    passed = {LAUNCH_FD: launch_fd} | ({LOCK_FD: other_fd} if other_fd is not None else {})
    # Duplicate the descriptors to high numbers first. A descriptor that has to be copied could
    # already be number 3 or 4, and would be overwritten.
    moved = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for to, fd in passed.items()}
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            dict(env),
            file_actions=[*files, *((os.POSIX_SPAWN_DUP2, fd, to) for to, fd in moved.items())],
            setsid=True,
            setsigmask=signals,
            setsigdef=signals - {signal.SIGKILL, signal.SIGSTOP},
        )
    finally:
        for fd in moved.values():
            os.close(fd)


def _record_failed_start(directory: Path, program: str, error: OSError) -> Process:
    write(directory / "stderr", f"perdure: cannot start {program}: {error.strerror}\n".encode())
    end = {
        "code": 126,
        "signal": None,
        "cause": "exited",
        "leader_ended": time.time_ns() // 1_000_000,
        "survivors_killed": 0,
    }
    write(directory / "exit.json", json.dumps(end).encode(), whole=True)
    return Process(directory, None, "")


def check(argv: Sequence[str], env: Mapping[str, str], mark: str) -> None:
    """Check arguments, variables and mark before a start. Raises UsageError if they contain
    something that cannot be passed to a program, such as NUL."""
    if not argv or not argv[0]:
        raise UsageError("there is no program to start")
    if (
        not mark
        or not mark.isascii()
        or not all(letter.isalnum() or letter in "._:/@-" for letter in mark)
    ):
        raise UsageError(f"{mark!r} cannot mark an attempt: letters, digits and ._:/@- only")
    if not all(_fits(word) for word in argv):
        raise UsageError(
            "a program's arguments cannot contain NUL or text that is not valid Unicode"
        )
    for name, value in env.items():
        if not name or "=" in name or not _fits(name + value):
            raise UsageError(
                f"the environment variable {name!r} is invalid: its name is not allowed, or it "
                "contains NUL or text that is not valid Unicode"
            )


def _fits(text: str) -> bool:
    """Return whether the kernel accepts a text as an argument. It must not contain NUL or a lone
    surrogate."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def run_quick(
    command: str | Sequence[str],
    *,
    directory: Path,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    mark: str = "",
    lock_fd: int | None = None,
) -> tuple[int, str]:
    """Run a shell command (str) or a program (sequence) until it ends. Return its exit code and the
    last 4 KiB of its output. stdout and stderr are one stream.

    Three exit codes have a special meaning. 124: the command exceeded `timeout_s`. 128 + n: signal
    n ended it. 125: it ended in any other way. Like an agent, the command has a shim, a directory
    and a mark. So no process that it started outlives it, and `find` finds the command.
    """
    inner = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
    argv = ("/bin/sh", "-c", 'exec 2>&1; exec "$@"', "sh", *inner)
    quick = Command(argv=argv, stdin=b"")
    mark = mark or f"quick-{uuid4().hex}"
    process = start(
        quick,
        directory=directory,
        cwd=cwd,
        env=env,
        mark=mark,
        deadline_s=timeout_s,
        grace_s=2.0,
        lock_fd=lock_fd,
    )
    end = process.wait()
    assert end is not None
    output = tail(process.stdout) or end.stderr_tail
    if end.cause != "exited":
        return (
            124 if end.cause == "deadline" else 125
        ), f"{output}\n[{end.cause} after {timeout_s:g} s]".lstrip()
    return (end.code if end.code is not None else 128 + (end.signal or 0)), output
