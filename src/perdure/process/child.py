"""Starts an agent under its shim, finds it again after the supervisor died, waits for it and ends it.

Everything is synchronous. A Process holds no open file and no child handle: it may be dropped, made again by `find` in another
process, and used from several threads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from perdure.errors import Conflict, UsageError
from perdure.model import Command, Exit
from perdure.process.identity import Identity, boot_id
from perdure.process.lines import tail
from perdure.process.marks import SHIM, VARIABLE, end_all, limit_value
from perdure.shim import LOCK_FD, boottime, pids, stat

OUTPUT_CAP = 2 * 1024**3
"""Bytes of stdout or stderr at which an agent is ended with the cause `flooded`."""


class Process:
    """An attempt's agent and its shim, by the attempt's directory. Made by `start` and `find`."""

    def __init__(self, directory: Path, shim: Identity | None, mark: str) -> None:
        self.directory, self.shim, self.mark = directory, shim, mark
        self.stdout, self.stderr = directory / "stdout", directory / "stderr"

    def alive(self) -> bool:
        """Whether the shim lives. While it does, the attempt has not ended."""
        self._reap()
        return self.shim is not None and self.shim.alive()

    @property
    def agent_pid(self) -> int | None:
        """The agent's pid, for people: it may have ended since. None if it could not be started.

        Waits through the moment that the shim needs to start it.
        """
        while True:
            over = not self.alive()
            pid = _read(self.directory / "agent.json").get("pid")
            if isinstance(pid, int) or over or (self.directory / "exit.json").exists():
                return pid
            time.sleep(0.002)

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """How the agent ended, or None if it has not within `timeout_s` (None: as long as it takes).

        Returns only when nothing of the attempt lives. If the shim was killed, what it leaves behind is ended here and
        the cause is `lost`.
        """
        fd = self.shim.open() if self.shim else None
        if fd is not None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            try:
                if not poll.poll(None if timeout_s is None else max(0, int(timeout_s * 1000))):
                    return None
            finally:
                os.close(fd)
        self._reap()
        return self._recorded() or self._lost()

    def stop(self, cause: str = "stopped") -> None:
        """Asks the shim to end the agent: TERM, its grace, KILL. Does not wait. `cause` is what the Exit will say."""
        if self.shim is not None and self.shim.alive():
            _write(self.directory / "cause", cause.encode(), whole=True)
            self.shim.send(signal.SIGTERM)

    def kill(self, cause: str = "stopped") -> None:
        """Ends the agent, everything that it started and at last the shim, now. Returns when nothing of it lives."""
        self.stop(cause)
        if self.mark:
            end_all(self.mark, 0)
        self._reap()

    def stderr_tail(self) -> str:
        """The last 4 KiB of the agent's stderr, safe to show."""
        return tail(self.stderr)

    def _recorded(self) -> Exit | None:
        end = _read(self.directory / "exit.json")
        if not end:
            return None
        return Exit(code=end["code"], signal=end["signal"], cause=end["cause"], stderr_tail=self.stderr_tail(), at=end["leader_ended"])

    def _lost(self) -> Exit:
        if self.mark:
            end_all(self.mark)
        return Exit(cause="lost", stderr_tail=self.stderr_tail() or tail(self.directory / "shim.err"), at=time.time_ns() // 1_000_000)

    def _reap(self) -> None:
        """Takes the ended shim off the process table, where it is this process's child."""
        known = stat(self.shim.pid) if self.shim else None
        if self.shim and known and known[3] == self.shim.starttime:
            try:
                os.waitpid(self.shim.pid, os.WNOHANG)
            except ChildProcessError:
                return


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
) -> Process:
    """Starts `command` in `cwd` under a shim that outlives this process. `directory` (0700) belongs to this one attempt.

    `env` with `command.env` over it is the agent's whole environment, plus the mark. `deadline_s` 0 means none. `lock_fd`
    is a locked open file description: it is handed to the shim, so close it here afterwards and never unlock it. A program
    that cannot be started is an Exit with code 127 or 126 and the reason in its stderr. Raises Conflict if the directory
    was used before, UsageError if argv or the environment cannot be passed to any program.
    """
    directory, cwd = directory.absolute(), cwd.absolute()
    whole_env = {**env, **command.env, VARIABLE: mark}
    _check(command.argv, whole_env, mark)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    if find(directory) is not None:
        raise Conflict(f"{directory} already belongs to an attempt")
    lock = "0" if lock_fd is None else "1"
    launch = (str(deadline_s), str(grace_s), str(output_cap), str(limit_value(mark)), lock, str(cwd), *command.argv)
    _write(directory / "stdin", command.stdin)
    _write(directory / "launch", b"\0".join(os.fsencode(field) for field in launch))
    try:
        pid = _spawn(directory, whole_env, lock_fd)
    except OSError as error:  # E2BIG: an environment that is too large even for the shim
        return _stillborn(directory, command.argv[0], error)
    known = stat(pid)
    return Process(directory, Identity(boot_id(), pid, known[3] if known else 0), mark)


def find(directory: Path) -> Process | None:
    """The attempt's process, alive or ended, whoever started it; None if no agent was ever started from this directory."""
    directory = directory.absolute()
    waited_until = boottime() + 10
    while True:
        known = _read(directory / "shim.json")
        if known:
            return Process(directory, Identity(known["boot_id"], known["pid"], known["starttime"]), known["mark"])
        if (directory / "exit.json").exists():
            return Process(directory, None, "")
        # Between its exec and its shim.json a shim can be seen only in the process table.
        if not _shim_is_starting(directory) or boottime() > waited_until:
            return None
        time.sleep(0.01)


def run_quick(
    command: str | Sequence[str],
    *,
    directory: Path,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    mark: str = "",
) -> tuple[int, str]:
    """Runs a shell command (str) or a program (sequence) to its end; returns its code and the last 4 KiB of its output.

    stdout and stderr are one stream. Code 124 means that `timeout_s` was over, 128 + n that signal n ended it. It has a
    shim, a directory and a mark of its own, like an agent: nothing that it starts survives, and `find` finds it.
    """
    inner = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
    argv = ("/bin/sh", "-c", 'exec 2>&1; exec "$@"', "sh", *inner)
    quick = Command(argv=argv, stdin=b"")
    mark = mark or f"quick-{uuid4().hex}"
    process = start(quick, directory=directory, cwd=cwd, env=env, mark=mark, deadline_s=timeout_s, grace_s=2.0)
    end = process.wait()
    assert end is not None
    output = tail(process.stdout) or end.stderr_tail
    if end.cause != "exited":
        return (124 if end.cause == "deadline" else 125), f"{output}\n[{end.cause} after {timeout_s:g} s]".lstrip()
    return (end.code if end.code is not None else 128 + (end.signal or 0)), output


def _spawn(directory: Path, env: Mapping[str, str], lock_fd: int | None) -> int:
    """The shim, in a session of its own, with every signal blocked until it is ready for the one that it wants."""
    devnull, private = os.O_RDWR, os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", devnull, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", devnull, 0),
        (os.POSIX_SPAWN_OPEN, 2, directory / "shim.err", private, 0o600),
    ]
    if lock_fd is not None:
        files.append((os.POSIX_SPAWN_DUP2, lock_fd, LOCK_FD))
    signals = signal.valid_signals()
    return os.posix_spawn(
        sys.executable,
        (sys.executable, "-I", "-S", str(SHIM), str(directory)),
        dict(env),
        file_actions=files,
        setsid=True,
        setsigmask=signals,
        setsigdef=signals - {signal.SIGKILL, signal.SIGSTOP},
    )


def _stillborn(directory: Path, program: str, error: OSError) -> Process:
    _write(directory / "stderr", f"perdure: cannot start {program}: {error.strerror}\n".encode())
    end = {"code": 126, "signal": None, "cause": "exited", "leader_ended": time.time_ns() // 1_000_000, "survivors_killed": 0}
    _write(directory / "exit.json", json.dumps(end).encode(), whole=True)
    return Process(directory, None, "")


def _shim_is_starting(directory: Path) -> bool:
    wanted = [os.fsencode(SHIM), os.fsencode(directory)]
    for pid in pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3:5] == wanted:
                return True
        except OSError:
            continue
    return False


def _check(argv: Sequence[str], env: Mapping[str, str], mark: str) -> None:
    if not argv or not argv[0]:
        raise UsageError("there is no program to start")
    if not mark or not mark.isascii() or not all(letter.isalnum() or letter in "._:/@-" for letter in mark):
        raise UsageError(f"{mark!r} cannot mark an attempt: letters, digits and ._:/@- only")
    if not all(_fits(word) for word in argv):
        raise UsageError("a program's arguments cannot contain NUL or half a character")
    for name, value in env.items():
        if not name or "=" in name or not _fits(name + value):
            raise UsageError(f"{name!r} cannot be an environment variable, or its value contains NUL or half a character")


def _fits(text: str) -> bool:
    """Whether the kernel can take it: no NUL, and no lone surrogate."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file as a dict; {} if it is not there or not whole."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: bytes, *, whole: bool = False) -> None:
    """A file that only its owner can read. `whole`: there whole or not at all."""
    target = path.with_name(path.name + ".new") if whole else path
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    if whole:
        target.replace(path)
