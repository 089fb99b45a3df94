"""Controls an agent that is kept for several attempts, from the side of its owner. Also ends a kept
agent from any other process. `perdure.host.keeper` is the other side of the connection.

The owner is the process that called `keep`. Only the owner can give the agent a turn, and the agent
ends with its owner. Other processes find the agent by its directory and end it. A process must hold
the workdir's lock to give the agent a turn, and also to end the agent. So no process ends the agent
during a turn that another process has begun.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from perdure.host.process.child import Process, read_json, write
from perdure.host.process.identity import Identity, boot_id
from perdure.host.process.launch import (
    OUTPUT_CAP,
    check,
    claim,
    is_locked,
    python_command,
    spawn,
)
from perdure.host.process.orphans import KEEPER, VARIABLE, end_all, limit_value
from perdure.host.system import boottime, stat
from perdure.model import Command

if TYPE_CHECKING:
    from perdure.host.system.sockets import OwnerChannel

ANSWER_S = 30.0
"""Timeout for an answer of the keeper, in seconds. After that the keeper and its agent are
killed."""
END_S = 3.0
"""Time, in seconds, that a keeper has to end its agent after the grace. If it takes longer, the
caller kills keeper and agent."""


class Kept(Struct):
    """A kept agent, as its owner controls it. Not thread-safe."""

    directory: Path
    keeper: Identity
    mark: str
    control: OwnerChannel
    grace_s: float
    turns: int = 0
    memory: int = 0
    """Memory of the agent at the end of its last turn, in bytes."""
    why: str = ""
    """Reason why the agent was not kept for another turn."""
    _answers: list[str] = field(default_factory=list)

    def turn(
        self, directory: Path, *, stdin: bytes, deadline_s: float, lock_fd: int
    ) -> Process | None:
        """Give the agent its next prompt, for the attempt with this directory (0700). Return the
        attempt's process. Return None if the agent cannot take the prompt; the attempt has then
        not begun.

        The keeper gets the lock `lock_fd` for the duration of the turn. The caller closes its own
        descriptor afterwards, and never unlocks it. Raises Conflict if the directory was used
        before.
        """
        directory = directory.absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        launch_fd = claim(directory)
        try:
            write(directory / "stdin", stdin)
            self._hear()
            self._answers.clear()
            message = b"\0".join((b"turn", os.fsencode(directory), str(deadline_s).encode()))
            with contextlib.suppress(OSError):
                self.control.send(message, (launch_fd, lock_fd))
        finally:
            os.close(launch_fd)
        answer = self._answer()
        if answer != "taken":
            self.end()
            if not (directory / "shim.json").exists():
                return None
        self.turns += 1
        return Process(directory, self.keeper, self.mark, warm=True)

    def finish_turn(self) -> None:
        """Tell the keeper that the agent's turn is over. Does not wait for the answer. If the agent
        is kept, the attempt ends with the cause `turn`."""
        self._say(b"rest")

    def end_after_turn(self) -> None:
        """Tell the keeper not to keep the agent. The attempt then ends when the agent exits."""
        self._say(b"end")

    def leave(self) -> None:
        """Give up ownership of the agent, which then ends after its current turn."""
        self.control.close()

    def is_ready(self) -> bool:
        """Return whether the agent now waits for the next prompt, according to the keeper's answer
        to `finish_turn`. Call it after the attempt has ended. Also sets `memory` or `why`."""
        word, _, rest = self._answer().partition(" ")
        self.memory = int(rest) if word == "resting" else self.memory
        self.why = rest if word == "ending" else self.why
        return word == "resting" and self.alive()

    def alive(self) -> bool:
        """Return whether the keeper lives. Without its keeper, the agent cannot be alive."""
        return self.keeper.alive()

    def end(self) -> None:
        """End the agent, its descendants and its keeper. Returns when all have ended."""
        self.control.close()
        _end(self.directory, self.keeper, self.mark, self.grace_s)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.keeper.pid, os.WNOHANG)

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            self.control.send(word)

    def _hear(self) -> bool:
        """Read the answers that have arrived. Return False if the connection is closed."""
        while True:
            try:
                words, _ = self.control.receive()
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not words:
                return False
            self._answers.append(words.decode("utf-8", "replace"))

    def _answer(self) -> str:
        until = boottime() + ANSWER_S
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        while not self._answers and (left := until - boottime()) > 0:
            if not poll.poll(1 + int(left * 1000)) or not self._hear():
                break
        if self._answers:
            return self._answers.pop(0)
        return ""


def keep(
    command: Command,
    *,
    directory: Path,
    cwd: Path,
    env: Mapping[str, str],
    mark: str,
    grace_s: float,
    idle_s: float,
    memory: int,
    output_cap: int = OUTPUT_CAP,
) -> Kept:
    """Start a keeper, and return the agent that it will run. The keeper starts the agent with the
    first turn, and the agent ends with this process at the latest.

    `directory` must not exist yet. `idle_s`: maximum time between two turns. `memory`: limit for
    the resident memory of the agent and its descendants, in bytes; 0 means no limit. Raises
    UsageError if the arguments or the environment cannot be passed to a program.
    """
    whole_env = {**env, **command.env, VARIABLE: mark}
    check(command.argv, whole_env, mark)
    # With parents=True, mkdir applies `mode` only to the last directory, so there are two calls.
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700)
    launch_fd = claim(directory)
    from perdure.host.system.sockets import OwnerChannel

    ours, theirs = OwnerChannel.pair()
    try:
        fields = (
            str(grace_s),
            str(output_cap),
            str(idle_s),
            str(memory),
            str(limit_value(mark)),
            str(cwd.absolute()),
            *command.argv,
        )
        os.pwrite(launch_fd, b"\0".join(map(os.fsencode, fields)), 0)
        argv = python_command(KEEPER, directory)
        pid = spawn(directory, whole_env, launch_fd, theirs.fileno(), argv)
    except OSError:
        ours.close()
        shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        theirs.close()
        os.close(launch_fd)
    known = stat(pid)
    return Kept(directory, Identity(boot_id(), pid, known[3] if known else 0), mark, ours, grace_s)


def end_kept(directory: Path, grace_s: float) -> None:
    """End the kept agent of this directory, whichever process owns it, and remove the directory.
    Does nothing if there is no kept agent."""
    until = boottime() + ANSWER_S
    # If `launch` is locked but shim.json is missing, a keeper has just been started. It will write
    # shim.json soon.
    while (
        not (known := read_json(directory / "shim.json"))
        and is_locked(directory / "launch")
        and boottime() < until
    ):
        time.sleep(0.005)
    if known:
        _end(
            directory,
            Identity(known["boot_id"], known["pid"], known["starttime"]),
            known["mark"],
            grace_s,
        )
    shutil.rmtree(directory, ignore_errors=True)


def _end(directory: Path, keeper: Identity, mark: str, grace_s: float) -> None:
    """Ask the keeper to end everything. If the keeper fails to do so, kill all processes that carry
    the mark, and remove the directory."""
    held = keeper.open()
    if held is not None:
        try:
            keeper.send(signal.SIGTERM)
            ended = held.wait(grace_s + END_S)
        finally:
            held.close()
        if ended and not directory.exists():
            return
    end_all(mark, 0)
    # Meanwhile another process may have started a new agent in this directory.
    if read_json(directory / "shim.json").get("mark", mark) == mark:
        shutil.rmtree(directory, ignore_errors=True)
