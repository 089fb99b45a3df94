"""Supervisor, shim and agent are killed in every combination. Either the agent continues, or no
process of it is left, and the lock shows which."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import perdure
from perdure.errors import Conflict
from perdure.host import shim, system
from perdure.host.process import (
    Identity,
    Process,
    end_all,
    find,
    survivors,
    worker_alive,
    worker_identity,
)
from tests.patience import PATIENCE_S
from tests.process.agents import Launcher, content, daemon, gone, until

pytestmark = pytest.mark.usefixtures("shim")


SUPERVISOR = """
import fcntl, os, sys, time
from pathlib import Path
from perdure.model import Command
from perdure.host.process import boottime, hold, start
directory, cwd, mark, script, lock, followed = sys.argv[1:]
lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
if followed:
    hold(Path(directory), boottime() + 3600, boottime() + 3600, followed=True)
start(
    Command(argv=("/bin/sh", "-c", script), stdin=b"go\\n"), directory=Path(directory), cwd=Path(cwd),
    env={"PATH": os.environ["PATH"]}, mark=mark, deadline_s=60, grace_s=5, lock_fd=lock_fd,
)
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextmanager
def supervised(
    script: str, directory: Path, cwd: Path, mark: str, lock: Path, *, followed: bool = False
) -> Iterator[int]:
    """Start a supervisor in a separate process, which starts the agent `script`. Yield the
    supervisor's process id, so that the test can kill it."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(perdure.__file__).parent.parent)}
    if (chosen := os.environ.get(system.VARIABLE)) == "python":
        env[system.VARIABLE] = chosen
    argv = [
        sys.executable,
        "-c",
        SUPERVISOR,
        str(directory),
        str(cwd),
        mark,
        script,
        str(lock),
        "yes" if followed else "",
    ]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"started\n"
        try:
            yield supervisor.pid
        finally:
            supervisor.kill()


def is_free(lock: Path) -> bool:
    """Return whether another process could take the lock now."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_an_agent_outlives_its_supervisor(
    directory: Path, tmp_path: Path, mark: str, lock: Path
) -> None:
    """After the supervisor is killed, the agent continues and its shim keeps the lock. Another
    process finds the agent, waits for it and gets its Exit."""
    go_on = tmp_path / "go-on"
    script = (
        f"read word; echo begun $word; while ! [ -e {go_on} ]; do sleep 0.02; done; echo done; "
        "exit 5"
    )
    with supervised(script, directory, tmp_path, mark, lock) as supervisor:
        until(lambda: content(directory / "stdout"))
        os.kill(supervisor, signal.SIGKILL)
    process = find(directory)
    assert process is not None
    assert process.alive()
    assert process.mark == mark
    assert not is_free(lock)
    go_on.touch()
    end = process.wait()
    assert end is not None
    assert (end.code, end.cause) == (5, "exited")
    assert content(directory / "stdout") == b"begun go\ndone\n"
    assert is_free(lock)
    assert survivors(mark) == []


def test_an_agent_that_must_be_followed_ends_with_its_supervisor(
    directory: Path, tmp_path: Path, mark: str, lock: Path
) -> None:
    """If the supervisor is killed, nothing counts the agent's cost. So an agent that must be
    followed is ended at once, not when its lease ends."""
    script = "trap '' TERM; echo begun; while :; do sleep 0.02; done"
    with supervised(script, directory, tmp_path, mark, lock, followed=True) as supervisor:
        until(lambda: content(directory / "stdout"))
        process = find(directory)
        assert process is not None
        assert process.alive()
        os.kill(supervisor, signal.SIGKILL)
        end = process.wait(PATIENCE_S)
    assert end is not None
    assert (end.signal, end.cause) == (9, "lapsed")
    assert is_free(lock)
    assert survivors(mark) == []


def test_a_lease_without_a_pid_namespace_keeps_its_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a container hides the pid namespace, it is unknown to which process a pid in the lease
    belongs. So only the lease's times count."""
    monkeypatch.chdir(tmp_path)
    Path("lease").write_text(f"5.000 6.000 {os.getpid()} 1 \n")
    assert shim.lease(0.0) == (5.0, 6.0, False)


def test_an_adopted_agent_can_be_stopped(
    directory: Path, tmp_path: Path, mark: str, lock: Path
) -> None:
    """A process that adopts an agent can do everything with it that the process which started it
    can do."""
    with supervised("exec sleep 600", directory, tmp_path, mark, lock) as supervisor:
        os.kill(supervisor, signal.SIGKILL)
    process = find(directory)
    assert process is not None
    process.stop("stalled")
    end = process.wait()
    assert end is not None
    assert (end.signal, end.cause) == (15, "stalled")
    assert survivors(mark) == []


def test_an_end_while_nobody_looked(directory: Path, tmp_path: Path, mark: str, lock: Path) -> None:
    """If an agent ends between two supervisors, the second one gets its real Exit."""
    with supervised("sleep 0.1; exit 6", directory, tmp_path, mark, lock) as supervisor:
        os.kill(supervisor, signal.SIGKILL)
    until(lambda: is_free(lock))
    process = find(directory)
    assert process is not None
    assert not process.alive()
    end = process.wait(0)
    assert end is not None
    assert (end.code, end.cause) == (6, "exited")


def test_the_supervisor_dies_in_the_moment_of_the_start(
    tmp_path: Path, mark: str, lock: Path
) -> None:
    """If the supervisor dies while it starts a shim, the shim is found later, or it never existed.
    A second agent cannot start beside it."""
    for number in range(5):
        directory = tmp_path / f"attempt-{number}"
        with supervised("exec sleep 600", directory, tmp_path, mark, lock) as supervisor:
            os.kill(supervisor, signal.SIGKILL)
            process = find(directory)
        assert process is not None
        assert not is_free(lock)
        process.kill()
        assert process.wait(0) is not None
        assert survivors(mark) == []


@pytest.mark.parametrize("bare", [pytest.param(True, marks=pytest.mark.linux), False])
def test_the_shim_is_killed(launch: Launcher, tmp_path: Path, mark: str, bare: bool) -> None:
    """If the shim is killed, no process sees the agent's end, so the end is `lost`. Agent and
    daemons are found by what they inherited."""
    pid_file = tmp_path / "pid"
    process = launch(
        f"{daemon(pid_file, bare=bare)}; echo words >&2; trap '' TERM; while :; do sleep 0.05; done"
    )
    until(lambda: content(process.stderr))
    agent = process.agent_pid
    assert agent is not None
    assert process.shim is not None
    os.kill(process.shim.pid, signal.SIGKILL)
    until(lambda: not process.alive())
    assert {agent, int(pid_file.read_text())} <= set(survivors(mark))
    end = process.wait()
    assert end is not None
    assert (end.code, end.signal, end.cause, end.stderr_tail) == (None, None, "lost", "words\n")
    assert gone(agent)
    assert gone(int(pid_file.read_text()))


def test_everything_is_killed(directory: Path, tmp_path: Path, mark: str, lock: Path) -> None:
    """If supervisor, shim and agent are killed, as when a machine is lost, the end is `lost`, the
    lock is free, and the output is kept."""
    with supervised("echo words; sleep 600", directory, tmp_path, mark, lock) as supervisor:
        until(lambda: content(directory / "stdout"))
        for pid in (supervisor, *survivors(mark)):
            os.kill(pid, signal.SIGKILL)
    process = find(directory)
    assert process is not None
    end = process.wait()
    assert end is not None
    assert end.cause == "lost"
    assert content(directory / "stdout") == b"words\n"
    assert is_free(lock)
    assert survivors(mark) == []


def test_nothing_was_started(directory: Path) -> None:
    """No process is found for a directory that does not exist, or in which no attempt was
    started."""
    assert find(directory) is None
    directory.mkdir()
    (directory / "stdin").touch()
    assert find(directory) is None


def test_the_lock_is_the_shims_alone(launch: Launcher, tmp_path: Path, lock: Path) -> None:
    """The agent and its background children do not inherit the lock. It is free as soon as wait has
    returned."""
    lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock_fd, fcntl.LOCK_EX)
    pid_file = tmp_path / "pid"
    process = launch(f"{daemon(pid_file)}; exec sleep 600", lock_fd=lock_fd)
    os.close(lock_fd)
    until(lambda: content(pid_file))
    holders = [pid for pid in (*survivors(process.mark), os.getpid()) if holds(pid, lock)]
    assert process.shim is not None
    assert holders == [process.shim.pid]
    process.stop()
    assert not is_free(lock)
    process.wait()
    assert is_free(lock)


def holds(pid: int, file: Path) -> bool:
    try:
        return any(link.resolve() == file for link in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):  # it ended or closed a descriptor meanwhile
        return False


def test_the_agent_has_no_files_but_its_three(launch: Launcher) -> None:
    """No descriptor of the supervisor or the shim reaches the agent, not even one that is marked
    inheritable."""
    leaking = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaking, True)
    process = launch("ls -1 /proc/$$/fd | sort -n | tr '\\n' ' '; :")
    os.close(leaking)
    assert process.wait() is not None
    assert process.stdout.read_text().split()[:3] == ["0", "1", "2"]
    assert str(leaking) not in process.stdout.read_text().split()


def test_a_recycled_pid_is_left_alone(launch: Launcher, directory: Path, tmp_path: Path) -> None:
    """A process that has the shim's old pid and another start time is not waited for, stopped or
    killed."""
    assert launch("exit 0").wait() is not None
    with subprocess.Popen(["sleep", "600"]) as stranger:
        identity = Identity.of(stranger.pid)
        assert identity is not None
        written = json.loads((directory / "shim.json").read_text())
        (directory / "exit.json").unlink()
        (directory / "shim.json").write_text(
            json.dumps({**written, "pid": stranger.pid, "starttime": identity.starttime - 1})
        )
        process = find(directory)
        assert process is not None
        assert not process.alive()
        process.stop()
        process.kill()
        end = process.wait()
        assert end is not None
        assert end.cause == "lost"
        assert not Identity(identity.boot, identity.pid, identity.starttime + 1).send(
            signal.SIGKILL
        )
        assert not Identity("another boot", identity.pid, identity.starttime).send(signal.SIGKILL)
        assert stranger.poll() is None
        assert identity.send(signal.SIGKILL)
        assert stranger.wait() == -9


def test_strangers_carry_no_mark(launch: Launcher, mark: str, env: dict[str, str]) -> None:
    """Only the exact mark counts. Another attempt, a longer mark, and the same word elsewhere in an
    environment are ignored."""
    process = launch("exec sleep 600")
    others = [{"PERDURE_ATTEMPT": mark + "0"}, {"OTHER": mark}, {"X": f"PERDURE_ATTEMPT={mark}"}]
    strangers = [subprocess.Popen(["sleep", "600"], env={**env, **other}) for other in others]
    try:
        agent = until(lambda: process.agent_pid)
        assert process.shim is not None
        assert survivors(mark) == sorted([agent, process.shim.pid])
        assert end_all(mark, 0) == 2
        assert all(stranger.poll() is None for stranger in strangers)
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def test_children_of_the_marked_are_found(mark: str, env: dict[str, str]) -> None:
    """A process without the mark that descends from a process with the mark is a survivor too, and
    is ended."""
    argv = ["sh", "-c", "env -i sleep 600 & echo; wait"]
    with subprocess.Popen(
        argv, env={**env, "PERDURE_ATTEMPT": mark}, stdout=subprocess.PIPE
    ) as marked:
        assert marked.stdout is not None
        marked.stdout.readline()
        until(lambda: len(survivors(mark)) == 2)
        assert end_all(mark, 5) == 2
        assert survivors(mark) == []


def test_the_end_is_waited_for(mark: str, env: dict[str, str]) -> None:
    """A killed process with much memory takes some time to end. Its environment is gone earlier,
    while it still holds its locks. So its real end is waited for."""
    code = "import sys; held = bytearray(b'x') * (400 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**env, "PERDURE_ATTEMPT": mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as marked:
        assert marked.stdout is not None
        marked.stdout.readline()
        identity = Identity.of(marked.pid)
        assert identity is not None
        assert end_all(mark, 0) == 1
        assert not identity.alive()


def test_nobody_ends_himself(mark: str) -> None:
    """A process that carries the mark and ends all marked processes does not end itself."""
    program = (
        "import sys; from perdure.host.process import *; print(survivors(sys.argv[1]), "
        "end_all(sys.argv[1], 0))"
    )
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(perdure.__file__).parent.parent),
        "PERDURE_ATTEMPT": mark,
    }
    done = subprocess.run(
        [sys.executable, "-c", program, mark], env=env, capture_output=True, check=True
    )
    assert done.stdout == b"[] 0\n"


def test_a_worker_knows_another() -> None:
    """A worker's name shows whether the worker is alive. The cases are the test itself, a process
    that has ended, a recycled pid, another boot, and another host."""
    mine = worker_identity()
    host, boot, pid, starttime = mine.rsplit(":", 3)
    assert worker_alive(mine) is True
    with subprocess.Popen(
        [sys.executable, "-c", "from perdure.host.process import *; print(worker_identity())"],
        stdout=-1,
        env=_env(),
    ) as other:
        assert other.stdout is not None
        theirs = other.stdout.read().decode().strip()
    assert theirs.startswith(f"{host}:{boot}:")
    assert worker_alive(theirs) is False
    assert worker_alive(f"{host}:{boot}:{pid}:{int(starttime) + 1}") is False
    assert worker_alive(f"{host}:00000000:{pid}:{starttime}") is False
    assert worker_alive(f"another{host}:{boot}:{pid}:{starttime}") is None
    assert worker_alive("what is this") is None


def _env() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(perdure.__file__).parent.parent)}


def test_two_wait_for_one(launch: Launcher) -> None:
    """The process that started an agent and the process that found it get the same Exit, in either
    order."""
    first = launch("sleep 0.1; exit 2")
    second = find(first.directory)
    assert second is not None
    assert isinstance(second, Process)
    assert second.wait() == first.wait()
    assert second.wait(0) == first.wait(0)


def test_two_start_at_once(launch: Launcher, tmp_path: Path, directory: Path) -> None:
    """Among many starts of an attempt in one directory exactly one succeeds, and one agent runs."""
    runs = tmp_path / "runs"

    def attempt(_: int) -> Process | None:
        try:
            return launch(f"echo run >> {runs}; sleep 0.2")
        except Conflict:
            return None

    with ThreadPoolExecutor(8) as pool:
        started = [process for process in pool.map(attempt, range(8)) if process]
    assert len(started) == 1
    assert started[0].wait() is not None
    assert content(runs) == b"run\n"


def test_a_look_that_lasts_a_moment_more(launch: Launcher, directory: Path) -> None:
    """A process that looks for an agent holds its lock for a moment. A child that another thread
    starts at that moment also holds the lock until its exec. An agent that is started in that time
    still starts."""
    directory.mkdir()
    looks = os.open(directory / "launch", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looks, fcntl.LOCK_SH)
    with subprocess.Popen(["sleep", "0.3"], pass_fds=[looks]):
        os.close(looks)
        assert launch("exit 3").wait() is not None
