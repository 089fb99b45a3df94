"""One attempt as the keeper handles it: the attempt's directory, limits and locks."""

# ruff: noqa: PTH123
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from perdure.host import shim, system


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
        left: Sequence[dict[str, object]] = (),
    ) -> None:
        """End the attempt: write `exit.json`, then release the locks."""
        try:
            with inside(self.directory):
                found = (list(left), len(left))
                shim.conclude(self.outputs, code, number, cause, shim.now_ms(), killed, found)
        finally:
            self.close()

    def close(self) -> None:
        for fd in (*self.outputs, *self.locks):
            os.close(fd)
