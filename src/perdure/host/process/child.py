"""An attempt's agent and its shim, seen from outside: whether it lives, how it ended, how to end
it.

A Process holds no open file and no child handle. It may be dropped, created again by `find` in
another process, and used from several threads.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from perdure.host import system
from perdure.host.process.identity import Identity
from perdure.host.process.leftovers import Left
from perdure.host.process.lines import tail
from perdure.host.process.orphans import end_all
from perdure.host.shim import OVER
from perdure.host.system import Handle, boottime, stat
from perdure.model import Exit

TURN_TICK_S = 0.005
"""Poll interval for the end of a kept agent's turn, in seconds: no process ends with the turn."""


class Process:
    """An attempt's agent and its shim, by the attempt's directory. Made by `start` and `find`."""

    def __init__(
        self, directory: Path, shim: Identity | None, mark: str, *, warm: bool = False
    ) -> None:
        self.directory, self.shim, self.mark = directory, shim, mark
        self.warm = warm
        """Whether the agent is kept. Then its keeper takes the place of the shim, and both may
        outlive the attempt."""
        self.stdout, self.stderr = directory / "stdout", directory / "stderr"

    def alive(self) -> bool:
        """Return whether the attempt is still running. It is as long as its shim lives; with a
        keeper, until `exit.json` exists or the keeper has ended."""
        self._reap()
        return self.shim is not None and self.shim.alive() and not (self.warm and self._over())

    @property
    def agent_pid(self) -> int | None:
        """The agent's pid, for display: it may have ended since. None if it could not be started.

        Waits for the moment that the shim needs to start it.
        """
        while True:
            over = not self.alive()
            pid = read_json(self.directory / "agent.json").get("pid")
            if isinstance(pid, int) or over or (self.directory / "exit.json").exists():
                return pid
            time.sleep(0.005)

    def agent_alive(self) -> bool:
        """Return whether the agent itself lives. Its shim lives longer, until nothing of the
        attempt is left."""
        known = read_json(self.directory / "agent.json")
        return bool(known) and system.lives(known["pid"], known["starttime"])

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """Return how the agent ended, or None if it has not within `timeout_s` (None: no limit).
        Returns only when nothing of the attempt runs. If the shim was killed, this call ends the
        processes that it left behind, and the cause is `lost`."""
        held = self.shim.open() if self.shim else None
        if held is not None:
            try:
                if not (self._turn_over(held, timeout_s) if self.warm else held.wait(timeout_s)):
                    return None
            finally:
                held.close()
        self._reap()
        return self._exit() or self._lost()

    def _over(self) -> bool:
        return (self.directory / "exit.json").exists()

    def _turn_over(self, held: Handle, timeout_s: float | None) -> bool:
        """Return whether the turn, or the keeper, ends within the time (seconds; None: no
        limit)."""
        if timeout_s is None:
            until = float("inf")
        else:
            until = boottime() + timeout_s
        while True:
            end = self._exit()
            if (end is not None and end.cause == "turn") or held.wait(0):
                return True
            if boottime() >= until:
                return False
            held.wait(min(TURN_TICK_S, max(0.0, until - boottime())))

    def stop(self, cause: str = "stopped") -> None:
        """Ask the shim to end the agent: TERM, its grace, KILL. Does not wait. `cause` becomes the
        cause of the Exit."""
        if self.shim is not None and self.alive():
            write(self.directory / "cause", cause.encode(), whole=True)
            self.shim.send(signal.SIGTERM)

    def release(self, kept: Collection[int] = ()) -> None:
        """Tell the shim that the agent's turn is over, so that it ends the agent. `kept`: processes
        that are not ended with the agent."""
        if kept:
            write(self.directory / "kept", " ".join(map(str, kept)).encode(), whole=True)
        self.stop(OVER)

    def left_behind(self) -> tuple[list[Left], int]:
        """Return the processes that outlived the agent, as its shim found them, and how many there
        were."""
        end = read_json(self.directory / "exit.json")
        found = [
            Left(each["pid"], each["command"], each["age_s"]) for each in end.get("left") or ()
        ]
        return found, int(end.get("left_count") or 0)

    def kill(self, cause: str = "stopped") -> None:
        """End the agent, everything that it started, and finally the shim, without a grace. Return
        when nothing of it lives."""
        self.stop(cause)
        if self.mark and not (self.warm and self._over()):
            end_all(self.mark, 0)
        self._reap()

    def stderr_tail(self) -> str:
        """Return the last 4 KiB of the agent's stderr, safe to display."""
        return tail(self.stderr)

    def _exit(self) -> Exit | None:
        end = read_json(self.directory / "exit.json")
        if not end:
            return None
        # The agent was ended because its turn was over, so the signal is no failure of the agent.
        over = end["cause"] == OVER
        return Exit(
            code=0 if over else end["code"],
            signal=None if over else end["signal"],
            cause=end["cause"],
            stderr_tail=self.stderr_tail(),
            at=end["leader_ended"],
        )

    def _lost(self) -> Exit:
        if self.mark:
            end_all(self.mark)
        return Exit(
            cause="lost",
            stderr_tail=self.stderr_tail() or tail(self.directory / "shim.err"),
            at=time.time_ns() // 1_000_000,
        )

    def _reap(self) -> None:
        """Reap the ended shim, if it is a child of this process."""
        known = stat(self.shim.pid) if self.shim else None
        if self.shim and known and known[3] == self.shim.starttime:
            try:
                os.waitpid(self.shim.pid, os.WNOHANG)
            except ChildProcessError:
                return


def read_json(path: Path) -> dict[str, Any]:
    """Return a small JSON file as a dict; {} if it is missing or incomplete."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if isinstance(found, dict):
        return found
    return {}


def write(path: Path, content: bytes, *, whole: bool = False) -> None:
    """Write a file that only its owner can read. `whole`: completely or not at all, even if others
    write it at the same moment."""
    if whole:
        target = path.with_name(f"{path.name}.{os.urandom(4).hex()}.new")
    else:
        target = path
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    if whole:
        target.replace(path)
