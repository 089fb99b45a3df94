"""An agent that is kept for several attempts, from its owner's side; and how anybody else ends it.
The other side is `perdure.host.keeper`.

The owner is the process that called `keep`: it alone can give the agent a turn, and the agent ends
with it. Everybody else finds it by its directory and ends it. Whoever does either holds the
workdir's lock: then no turn is being had.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from perdure.host.process.child import Process, read_json, write
from perdure.host.process.identity import Identity, boot_id
from perdure.host.process.launch import OUTPUT_CAP, check, claim, spawn
from perdure.host.process.marks import KEEPER, VARIABLE, end_all, limit_value
from perdure.host.shim import boottime, stat
from perdure.lateclass import dataclass
from perdure.model import Command

ANSWER_S = 30.0
"""A keeper that says nothing for so long is ended with its agent."""
END_S = 3.0
"""What it gets beyond the grace to end what it keeps; then that is done for it."""


@dataclass(slots=True)
class Kept:
    """One agent, in the hands of its owner. Used by one thread at a time."""

    directory: Path
    keeper: Identity
    mark: str
    control: socket.socket
    grace_s: float
    turns: int = 0
    memory: int = 0
    """Bytes, when it last came to rest."""
    why: str = ""
    """Why it was not kept."""
    _answers: list[str] = field(default_factory=list)

    def turn(
        self, directory: Path, *, stdin: bytes, deadline_s: float, lock_fd: int
    ) -> Process | None:
        """Gives it the next prompt, for the attempt with this directory (0700). None if it cannot
        take one: nothing was begun.

        The lock is passed on for the time of the turn: close it here, and never unlock it. Raises
        Conflict if the directory was used.
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
                socket.send_fds(self.control, [message], [launch_fd, lock_fd])
        finally:
            os.close(launch_fd)
        answer = self._answer()
        if answer != "taken":
            self.end()
            if not (directory / "shim.json").exists():
                return None
        self.turns += 1
        return Process(directory, self.keeper, self.mark, warm=True)

    def rest(self) -> None:
        """Its turn is over. Returns at once; the attempt's Exit tells what became of it: `turn` if
        it is kept."""
        self._say(b"rest")

    def let_go(self) -> None:
        """It is not to be kept: the attempt ends when the agent does."""
        self._say(b"end")

    def leave(self) -> None:
        """It is nobody's from now on: it ends, after the turn that it has."""
        self.control.close()

    def rested(self) -> bool:
        """After the attempt's end: whether it waits for the next prompt, by the answer to `rest`.
        `memory` and `why` tell more."""
        word, _, rest = self._answer().partition(" ")
        self.memory = int(rest) if word == "resting" else self.memory
        self.why = rest if word == "ending" else self.why
        return word == "resting" and self.alive()

    def alive(self) -> bool:
        """Whether the keeper lives, and so what it keeps may."""
        return self.keeper.alive()

    def end(self) -> None:
        """Ends it, its tree and its keeper, for certain."""
        self.control.close()
        _end(self.directory, self.keeper, self.mark, self.grace_s)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.keeper.pid, os.WNOHANG)

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            self.control.send(word)

    def _hear(self) -> bool:
        """Takes in what was answered. False if nothing more will come."""
        while True:
            try:
                words = self.control.recv(4096, socket.MSG_DONTWAIT)
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
        return self._answers.pop(0) if self._answers else ""


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
    """Makes a keeper; the agent starts with its first turn, and lives as long as this process wants
    it, at most.

    `directory` must be new. `idle_s`: between two turns; `memory`: bytes resident, of the whole
    tree, 0 for no limit. Raises UsageError if argv or the environment cannot be passed to any
    program.
    """
    whole_env = {**env, **command.env, VARIABLE: mark}
    check(command.argv, whole_env, mark)
    # Parents are made with the mode of the umask: each gets its own call.
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700)
    launch_fd = claim(directory)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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
        os.pwrite(launch_fd, b"\0".join(os.fsencode(each) for each in fields), 0)
        pid = spawn(directory, whole_env, launch_fd, theirs.fileno(), KEEPER)
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
    """Ends the agent that is kept there by whomever, for certain, and clears the directory away.
    Nothing is there: nothing is done."""
    until = boottime() + ANSWER_S
    while (
        not (known := read_json(directory / "shim.json"))
        and _starting(directory)
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
    """Asks the keeper, and does what it does not."""
    fd = keeper.open()
    if fd is not None:
        try:
            keeper.send(signal.SIGTERM)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            ended = bool(poll.poll(int((grace_s + END_S) * 1000)))
        finally:
            os.close(fd)
        if ended and not directory.exists():
            return
    end_all(mark, 0)
    # Another program's agent may have taken the place since.
    if read_json(directory / "shim.json").get("mark", mark) == mark:
        shutil.rmtree(directory, ignore_errors=True)


def _starting(directory: Path) -> bool:
    """Whether somebody holds `launch`: a keeper that has not said yet who it is."""
    try:
        fd = os.open(directory / "launch", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
