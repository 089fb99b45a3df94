"""Controls the agent of an attempt and its shim: whether they live, how they ended, and how to end
them.

A Process holds no open file and no child handle. It may be discarded, created again by `find` in
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
from perdure.host.process.lines import tail
from perdure.host.process.orphans import Left, end_all
from perdure.host.shim import OVER
from perdure.host.system import Handle, boottime, stat
from perdure.model import Exit

TURN_TICK_S = 0.005
"""Poll interval for the end of a kept agent's turn, in seconds. Polling is necessary because no
process exits at the end of a turn."""


class Process:
    """The agent of an attempt and its shim, identified by the attempt's directory. Made by `start`
    and `find`."""

    def __init__(
        self, directory: Path, shim: Identity | None, mark: str, *, warm: bool = False
    ) -> None:
        self.directory, self.shim, self.mark = directory, shim, mark
        self.warm = warm
        """Whether the agent is kept for several attempts. A keeper then takes the place of the
        shim. The agent and its keeper may outlive this attempt."""
        self.stdout, self.stderr = directory / "stdout", directory / "stderr"

    def alive(self) -> bool:
        """Return whether the attempt is still running. With a shim, it runs until the shim has
        ended. With a keeper, it runs until `exit.json` exists or the keeper has ended."""
        self._reap()
        return self.shim is not None and self.shim.alive() and not (self.warm and self._over())

    @property
    def agent_pid(self) -> int | None:
        """The agent's pid, for display only: the agent may have ended since. None if it could not
        be started.

        Waits until the shim has started the agent.
        """
        while True:
            over = not self.alive()
            pid = read_json(self.directory / "agent.json").get("pid")
            if isinstance(pid, int) or over or (self.directory / "exit.json").exists():
                return pid
            time.sleep(0.005)

    def agent_alive(self) -> bool:
        """Return whether the agent's own process is alive. Its shim lives longer, until no process
        of the attempt is running."""
        known = read_json(self.directory / "agent.json")
        return bool(known) and system.lives(known["pid"], known["starttime"])

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """Return how the agent ended, as soon as no process of the attempt is running. Return None
        if that takes longer than `timeout_s` (None: no limit). If the shim was killed, this call
        ends the processes that it left behind, and the cause is `lost`."""
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
        """Wait until the turn or its keeper ends. Return False if that takes longer than
        `timeout_s` seconds (None: no limit)."""
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
        """Ask the shim to end the agent: TERM, then KILL after the shim's grace. Does not wait for
        the end. `cause` becomes the cause of the Exit."""
        if self.shim is not None and self.alive():
            write(self.directory / "cause", cause.encode(), whole=True)
            self.shim.send(signal.SIGTERM)

    def release(self, kept: Collection[int] = ()) -> None:
        """Tell the shim that the agent's turn is over. The shim then ends the agent. `kept`: pids
        of processes that must not be ended."""
        if kept:
            write(self.directory / "kept", " ".join(map(str, kept)).encode(), whole=True)
        self.stop(OVER)

    def left_behind(self) -> tuple[list[Left], int]:
        """Return the processes that outlived the agent, as its shim recorded them, and their total
        number. The list has at most `shim.LEFT_CAP` entries."""
        end = read_json(self.directory / "exit.json")
        found = []
        for each in end.get("left") or ():
            found.append(Left(each["pid"], each["command"], each["age_s"]))
        return found, int(end.get("left_count") or 0)

    def kill(self, cause: str = "stopped") -> None:
        """End the agent without a grace, then everything that it started, then the shim. Return
        when all of these processes have ended."""
        self.stop(cause)
        if self.mark and not (self.warm and self._over()):
            end_all(self.mark, 0, shim=self.shim)
        self._reap()

    def stderr_tail(self) -> str:
        """Return the last 4 KiB of the agent's stderr as text that is safe to display."""
        return tail(self.stderr)

    def _exit(self) -> Exit | None:
        end = read_json(self.directory / "exit.json")
        if not end:
            return None
        # perdure ended the agent because its turn was over, so the signal is not a failure of the
        # agent.
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
    """Write a file that only its owner can read. `whole`: replace the file in one step, so that
    readers see only complete content even if several processes write the file at the same
    moment."""
    if whole:
        target = path.with_name(f"{path.name}.{os.urandom(4).hex()}.new")
    else:
        target = path
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    if whole:
        target.replace(path)
