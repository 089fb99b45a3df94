"""The two things that `Keeper` works with. `KeptAgent` is the agent: its process, its three pipes,
and its descendants. `KeptTurn` is the attempt whose turn is running: its directory, limits and
locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from perdure.host import shim, system

# ruff: noqa: PTH123


def ticks() -> int:
    """Return the current time in ticks, the unit of a process's start time."""
    return system.as_start(system.boottime())


@contextmanager
def inside(directory: str | bytes) -> Iterator[None]:
    """Change the current directory during the block. The shim's functions write to the current
    directory."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


class KeptTurn:
    """One turn of the kept agent. It begins with the owner's message and ends with `conclude`."""

    def __init__(self, directory: bytes, deadline_s: float, locks: list[int]) -> None:
        self.directory = os.fsdecode(directory)
        self.locks = locks
        if deadline_s > 0:
            self.deadline = system.boottime() + deadline_s
        else:
            self.deadline = float("inf")
        self.began = ticks()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.outputs = (
            os.open(f"{self.directory}/stdout", flags, 0o600),
            os.open(f"{self.directory}/stderr", flags, 0o600),
        )
        self.torn = False
        """Whether the last chunk of stdout ended in the middle of a line."""

    def open(self, me: str) -> bytes:
        """Write `shim.json`, reserve disk space for the other records, and return the prompt.
        Raises OSError."""
        with inside(self.directory):
            shim.write_once("shim.json", me)
            for name in ("agent.json.part", "exit.json.part"):
                with open(name, "w", opener=shim.private) as file:
                    file.write(" " * 512)
            with open("stdin", "rb") as given:
                return given.read()

    def name_agent(self, pid: int) -> None:
        """Write the agent's pid and start time to `agent.json`. Raises OSError."""
        known = system.stat(pid)
        with inside(self.directory):
            started = known[3] if known else 0
            shim.write_once("agent.json", f'{{"pid": {pid}, "starttime": {started}}}\n')

    def write(self, number: int, piece: bytes, cap: int) -> bool:
        """Append a chunk of stdout (0) or stderr (1) to its file. Return False, without writing, if
        the file would exceed `cap` bytes. Raises OSError."""
        if os.fstat(self.outputs[number]).st_size + len(piece) > cap:
            return False
        if number == 0:
            self.torn = piece[-1:] != b"\n"
        view = memoryview(piece)
        while view:
            view = view[os.write(self.outputs[number], view) :]
        return True

    def write_error(self, words: str) -> None:
        shim.write_error(self.outputs[1], f"perdure: {words}\n".encode())

    def lease(self, now: float) -> tuple[float, float]:
        """Return two times, in seconds on the boot clock: when the agent is asked to end, and when
        it is killed."""
        with inside(self.directory):
            return shim.lease(now)[:2]

    def stop_cause(self) -> str:
        """Return the cause of the end, which the attempt's supervisor wrote before it sent SIGTERM.
        Return `stopped` if there is none."""
        with inside(self.directory):
            return shim.stop_cause()

    def conclude(
        self,
        code: int | None,
        number: int | None,
        cause: str,
        killed: int,
        left: tuple[list[dict[str, object]], int] = ([], 0),
    ) -> None:
        """End the attempt: write `exit.json`, then release the locks. `left`: descriptions of
        processes that outlived the turn or the agent, and the number of all such processes."""
        try:
            with inside(self.directory):
                shim.conclude(self.outputs, code, number, cause, shim.now_ms(), killed, left)
        finally:
            self.close()

    def close(self) -> None:
        for fd in (*self.outputs, *self.locks):
            os.close(fd)


CHUNK = 1 << 18
PIPE = 1 << 20


class KeptAgent:
    """A kept agent. `start` starts its process; before that, `pid` is 0. `status` is the wait
    status (wait(2)) of the process, and None as long as the process has not ended."""

    def __init__(self, cwd: bytes, argv: list[bytes]) -> None:
        self.cwd, self.argv = cwd, argv
        self.pid = 0
        self.status: int | None = None
        self.input = -1
        self.pipes = [-1, -1]
        self.prompt = b""
        self.offspring = system.Offspring(os.environ["PERDURE_ATTEMPT"])

    def start(self) -> None:
        """Start the agent in a session of its own, with default signal handlers and the environment
        that this process was started with. Raises OSError."""
        theirs, self.input = system.pipe()
        ends = [theirs]
        for number in (0, 1):
            self.pipes[number], end = system.pipe()
            os.set_blocking(self.pipes[number], False)
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                with contextlib.suppress(OSError):
                    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE)
            ends.append(end)
        os.set_blocking(self.input, False)
        files = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(ends)]
        defaults = []
        for number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                defaults.append(number)
        try:
            with inside(self.cwd):
                argv, env = self.argv, system.environment()
                self.pid = os.posix_spawnp(
                    argv[0],
                    argv,
                    env,
                    file_actions=files,
                    resetids=True,
                    setsid=True,
                    setsigmask=(),
                    setsigdef=defaults,
                )
        finally:
            for fd in ends:
                os.close(fd)

    def lives(self) -> bool:
        return self.pid != 0 and self.status is None

    def listens(self) -> bool:
        """Return whether the agent can be given a prompt: its process lives, its input is open, and
        the whole last prompt was written to it."""
        return self.lives() and self.input >= 0 and self.pipes[0] >= 0 and not self.prompt

    def close_input(self) -> None:
        if self.input >= 0:
            os.close(self.input)
            self.input = -1

    def feed(self) -> None:
        """Write as much of the prompt into the agent's input as the pipe accepts. If the agent has
        closed its input, the rest of the prompt is dropped."""
        try:
            self.prompt = self.prompt[os.write(self.input, self.prompt[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self.prompt = b""
            self.close_input()

    def read(self, number: int) -> bytes:
        """Return the next chunk of the agent's stdout (0) or stderr (1); b"" if there is none
        now."""
        if self.pipes[number] < 0:
            return b""
        try:
            piece = os.read(self.pipes[number], CHUNK)
        except BlockingIOError:
            return b""
        if not piece:
            os.close(self.pipes[number])
            self.pipes[number] = -1
        return piece

    def reap(self) -> None:
        """Reap ended children: the agent, and orphans that this process inherited."""
        status = shim.reap(self.pid)[1]
        self.status = status if status is not None else self.status

    def signal(self, number: int) -> None:
        if self.lives():
            os.kill(self.pid, number)

    def left_behind(self, since: int) -> tuple[list[int], list[int]]:
        """Return two lists of pids: descendants that are no longer below the agent in the process
        tree, and processes below the agent that started at `since` (ticks) or later."""
        below, started = _tree()
        orphans = self.offspring.orphans(below, self.pid)
        family, young = [self.pid], []
        while family:
            children = below.get(family.pop(), [])
            family += children
            young += [pid for pid in children if started[pid] >= since]
        return orphans, young

    def memory(self) -> int:
        """Return the resident memory of the agent and its descendants, in bytes. Memory that
        processes share is counted once for each of them."""
        below, _ = _tree()
        total, family = 0, [self.pid] if self.lives() else []
        while family:
            pid = family.pop()
            family += below.get(pid, [])
            with contextlib.suppress(OSError, IndexError):
                total += system.memory(pid)
        return total


def _tree() -> tuple[dict[int, list[int]], dict[int, int]]:
    """Return two dicts: the pids of the children by the pid of their parent, and the start time of
    each live process by its pid, in ticks since boot."""
    below: dict[int, list[int]] = {}
    started: dict[int, int] = {}
    for pid in system.pids():
        known = system.stat(pid)
        if known is not None and not system.is_dead(known):
            below.setdefault(known[1], []).append(pid)
            started[pid] = known[3]
    return below, started
