"""A kept agent and its keeper. The agent is a small program that answers each line of its input and
does what the line says."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.host.process import Identity, Kept, Process, end_kept, find, keep, survivors
from perdure.model import Command, Exit
from tests.patience import PATIENCE_S
from tests.process.agents import gone

AGENT = 'while IFS= read -r line; do eval "$line"; echo "done: $line"; done; echo leaving >> left'


class Ground:
    """A keeper, its attempts, and the workdir's lock."""

    def __init__(self, directory: Path, env: dict[str, str], mark: str, **options: Any) -> None:
        self.directory, self.work = directory, directory / "work"
        self.work.mkdir()
        given = {"grace_s": 3.0, "idle_s": 600.0, "memory": 0} | options
        command = Command(argv=("/bin/sh", "-c", AGENT), stdin=b"")
        self.kept: Kept = keep(
            command, directory=directory / "kept", cwd=self.work, env=env, mark=mark, **given
        )
        self.attempts = 0

    def turn(self, line: str, deadline_s: float = 60.0) -> Process | None:
        """Start the next attempt, and pass it the lock of the workdir. Return its process, or None
        if the keeper gives no further turn."""
        self.attempts += 1
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            place = self.directory / f"attempt-{self.attempts}"
            return self.kept.turn(
                place, stdin=f"{line}\n".encode(), deadline_s=deadline_s, lock_fd=fd
            )
        finally:
            os.close(fd)

    def rested(self, line: str) -> Exit:
        """Play one complete turn, and return its end."""
        process = self.turn(line)
        assert process is not None
        until(lambda: b"done: " in process.stdout.read_bytes())
        self.kept.finish_turn()
        return ended(process)

    def locked(self) -> bool:
        fd = os.open(self.directory / "lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


def until(met: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(process: Process) -> Exit:
    end = process.wait(PATIENCE_S)
    assert end is not None
    return end


@pytest.fixture
def ground(tmp_path: Path, env: dict[str, str], mark: str) -> Iterator[Callable[..., Ground]]:
    """Yield a function that makes a keeper. At the end no process of a keeper may be alive."""
    made: list[Ground] = []

    def make(**options: Any) -> Ground:
        made.append(Ground(tmp_path, env, mark, **options))
        return made[-1]

    yield make
    for each in made:
        each.kept.end()
    assert survivors(mark) == []
    assert not (tmp_path / "kept").exists()


@pytest.mark.linux
def test_a_runs_environment_does_not_choose_the_keepers_back_end(
    ground: Callable[..., Ground], env: dict[str, str]
) -> None:
    """The variable that forces the portable back end reaches the agent and not its keeper."""
    env["PERDURE_HOST"] = "portable"
    here = ground()
    process = here.turn('printf "%s\\n" "$PERDURE_HOST"')
    assert process is not None
    until(lambda: b"done: " in process.stdout.read_bytes())
    here.kept.finish_turn()
    assert ended(process).cause == "turn"
    assert process.stdout.read_bytes().startswith(b"portable\n")


def test_the_registry_is_private(tmp_path: Path, env: dict[str, str], mark: str) -> None:
    """Only the owner can use the directory that all keepers share, and each keeper's own directory,
    whatever the umask is."""
    registry = tmp_path / "warm"
    command = Command(argv=("/bin/sh", "-c", AGENT), stdin=b"")
    kept = keep(
        command,
        directory=registry / "one",
        cwd=tmp_path,
        env=env,
        mark=mark,
        grace_s=3.0,
        idle_s=600.0,
        memory=0,
    )
    try:
        assert (registry.stat().st_mode & 0o777, (registry / "one").stat().st_mode & 0o777) == (
            0o700,
            0o700,
        )
    finally:
        kept.end()


def test_each_turn_is_an_attempt_of_its_own(ground: Callable[..., Ground]) -> None:
    """One agent serves two attempts. Each directory has its own output and end, and no lock is held
    between them."""
    one = ground()
    assert one.rested("echo first").cause == "turn"
    assert one.kept.is_ready()
    assert not one.locked()
    second = one.turn("echo second; echo aside >&2; while ! [ -e go ]; do sleep 0.01; done")
    assert second is not None
    until(lambda: b"second" in second.stdout.read_bytes())
    assert one.locked()
    assert second.wait(0) is None
    first = find(one.directory / "attempt-1")
    assert first is not None
    assert not first.alive()
    first.kill()  # A kill of an attempt that has ended affects no process.
    (one.work / "go").touch()
    until(lambda: b"done: " in second.stdout.read_bytes())
    one.kept.finish_turn()
    end = ended(second)
    assert (end.cause, end.code, end.signal, end.stderr_tail) == ("turn", None, None, "aside\n")
    assert (one.directory / "attempt-1/stdout").read_text() == "first\ndone: echo first\n"
    assert one.kept.turns == 2


def test_it_ends_by_itself_when_it_is_let_go(ground: Callable[..., Ground]) -> None:
    """If a kept agent is released during its turn, it finishes the turn and ends, and the attempt
    has an ordinary exit."""
    one = ground()
    process = one.turn("while ! [ -e go ]; do sleep 0.01; done")
    assert process is not None
    one.kept.end_after_turn()
    (one.work / "go").touch()
    end = ended(process)
    assert (end.cause, end.code) == ("exited", 0)
    assert (one.work / "left").exists()


def test_what_a_turn_leaves_behind_is_ended(ground: Callable[..., Ground]) -> None:
    """A daemon that a turn left is ended with the attempt, and the agent is kept. If a child
    process of the agent itself is left, child and agent are ended."""
    one = ground()
    pid_file = one.work / "pid"
    assert one.rested("true").cause == "turn"
    assert one.kept.is_ready()
    away = "setsid sh -c 'trap \"\" TERM; echo $$ > pid; exec sleep 600' > /dev/null"
    assert one.rested(f"({away} &); while ! [ -s pid ]; do sleep 0.01; done").cause == "turn"
    assert gone(int(pid_file.read_text()))
    assert one.kept.is_ready()
    process = one.turn("sleep 600 & echo $! > child")
    assert process is not None
    until(lambda: b"done: " in process.stdout.read_bytes())
    one.kept.finish_turn()
    assert ended(process).cause == "exited"
    assert not one.kept.is_ready()
    assert "still runs" in one.kept.why
    assert gone(int((one.work / "child").read_text()))


def test_all_that_is_left_behind_is_counted(ground: Callable[..., Ground]) -> None:
    """All processes that a turn or the agent itself left behind are counted, and 50 of them are
    described."""
    one = ground()
    start = "for n in $(seq 60); do (sleep 600 > /dev/null 2>&1 &); done"
    process = one.turn(start)
    assert process is not None
    until(lambda: b"done: " in process.stdout.read_bytes())
    one.kept.finish_turn()
    assert ended(process).cause == "turn"
    found = json.loads((one.directory / "attempt-1" / "exit.json").read_text())
    assert (len(found["left"]), found["left_count"]) == (50, 60)
    process = one.turn(f"{start}; exit")
    assert process is not None and ended(process).cause == "exited"
    found = json.loads((one.directory / "attempt-2" / "exit.json").read_text())
    assert (len(found["left"]), found["left_count"]) == (50, 60)


def test_words_out_of_turn_end_it(ground: Callable[..., Ground]) -> None:
    """An agent that prints something between two turns does not get another turn."""
    one = ground()
    assert one.rested("trap 'echo late' USR1").cause == "turn"
    assert one.kept.is_ready()
    first = find(one.directory / "attempt-1")
    assert first is not None
    assert first.agent_pid is not None
    os.kill(first.agent_pid, signal.SIGUSR1)
    until(lambda: not one.kept.alive())
    assert one.turn("true") is None
    assert first.stdout.read_bytes().count(b"late") == 1  # only in the line that was evaluated


@pytest.mark.parametrize("limit", [{"idle_s": 0.0}, {"memory": 1}])
def test_limits_end_it(ground: Callable[..., Ground], limit: dict[str, Any]) -> None:
    """An agent that waited too long, or uses too much memory, is ended, and gets no turn."""
    one = ground(**limit)
    one.rested("true")
    until(lambda: not one.kept.alive())
    assert one.turn("true") is None
    assert not (one.directory / "attempt-2/shim.json").exists()


@pytest.mark.parametrize(
    ("how", "cause"),
    [("stop", "stalled"), ("deadline", "deadline"), ("kill", "lost"), ("agent", "exited")],
)
def test_a_second_turn_is_ended_for_certain(
    ground: Callable[..., Ground], how: str, cause: str
) -> None:
    """A stop, a deadline, and a kill of keeper or agent each end a later turn. The attempt has one
    end, and no process of it is alive."""
    one = ground()
    assert one.rested("true").cause == "turn"
    assert one.kept.is_ready()
    process = one.turn(
        "trap '' TERM; echo begun; while :; do sleep 600; done", 0.5 if how == "deadline" else 60.0
    )
    assert process is not None
    # The deadline may be over before the agent has printed anything.
    until(lambda: b"begun" in process.stdout.read_bytes() or process.wait(0) is not None)
    assert process.agent_pid is not None
    if how == "stop":
        process.stop("stalled")
    elif how == "kill":
        os.kill(one.kept.keeper.pid, signal.SIGKILL)
    elif how == "agent":
        os.kill(process.agent_pid, signal.SIGKILL)
    assert ended(process).cause == cause
    assert survivors(one.kept.mark) == []
    assert not one.locked()


OWNER = """
import fcntl, os, sys
from pathlib import Path
from perdure.model import Command
from perdure.host.process import keep
top = Path(sys.argv[1])
kept = keep(Command(argv=("/bin/sh", "-c", sys.argv[3]), stdin=b""), directory=top / "kept", cwd=top, env=dict(os.environ),
            mark=sys.argv[2], grace_s=3.0, idle_s=600.0, memory=0)
fd = os.open(top / "lock", os.O_RDWR | os.O_CREAT)
process = kept.turn(top / "attempt", stdin=(sys.argv[4] + "\\n").encode(), deadline_s=60.0, lock_fd=fd)
while b"done: " not in process.stdout.read_bytes() and "go" not in sys.argv[4]:
    pass
if "go" not in sys.argv[4]:
    kept.finish_turn()
    process.wait()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("line", ["true", "while ! [ -e go ]; do sleep 0.01; done"])
def test_its_owner_is_killed(tmp_path: Path, env: dict[str, str], mark: str, line: str) -> None:
    """If the owner is killed, an idle agent ends with it. A working agent finishes its turn, is
    found by its directory, and ends with an ordinary exit."""
    words = [sys.executable, "-c", OWNER, str(tmp_path), mark, AGENT, line]
    owner = subprocess.Popen(
        words,
        env={**env, "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    assert owner.stdout.readline() == b"ready\n"
    owner.kill()
    owner.communicate()
    process = find(tmp_path / "attempt")
    assert process is not None
    if "go" in line:
        assert process.alive()
        (tmp_path / "go").touch()
        end = ended(process)
        assert (end.cause, end.code) == ("exited", 0)
    until(lambda: not survivors(mark))
    assert ended(process).cause == ("exited" if "go" in line else "turn")
    until(lambda: not (tmp_path / "kept").exists())


def test_anybody_ends_it_by_its_directory(ground: Callable[..., Ground]) -> None:
    """A process that has the workdir's lock can end a kept agent by its directory alone, even if
    the keeper was killed."""
    one = ground()
    assert one.rested("true").cause == "turn"
    end_kept(one.directory / "kept", 3.0)
    assert survivors(one.kept.mark) == []
    assert not (one.directory / "kept").exists()
    assert Identity.of(one.kept.keeper.pid) is None or not one.kept.alive()
    assert one.turn("true") is None
