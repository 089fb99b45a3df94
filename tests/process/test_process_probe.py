"""Which processes of a running attempt are alive: real processes, and names of processes
elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from msgspec.structs import replace

from perdure.host import process
from perdure.host.process import Probe
from perdure.host.process.identity import boot_id, namespace
from perdure.model import Command, Host, Liveness, RunState
from perdure.protocols import RunRow

NOW, LATER = 1_000, 2_000
HERE = Host("here", "box")
ELSEWHERE = "there/box:ffffffff.1:1:1"


def a_run(worker: str, lease_until: int = LATER, host: str = "") -> RunRow:
    return RunRow(
        id="r", name="task", state=RunState.RUNNING, agent="claude", attempt=1, reason="", updated=0, created=0, place="", worker=worker,
        lease_until=lease_until, host=host,
    )  # fmt: skip


def seen(
    state: Path, run: RunRow, now: int = NOW, host: Host | None = None, again: RunRow | None = None
) -> Liveness | None:
    return Probe(state, host or process.probe.UNSHARED_HOST).liveness(
        run, now, lambda: again or run
    )


def until(met: Callable[[], bool]) -> None:
    """Wait until the condition is met, because the kernel's effects may come late."""
    for _ in range(3000):
        if met():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def an_agent(state: Path) -> process.Process:
    """Start an agent of attempt 1 of the run, under its shim."""
    return process.start(
        Command(argv=("/bin/sleep", "600"), stdin=b""), directory=state / "runs/r/1", cwd=state, env=dict(os.environ),
        mark=f"r.{uuid4().hex}", deadline_s=0, grace_s=1,
    )  # fmt: skip


def a_dead_worker() -> str:
    """Return the worker's name of a supervisor that has ended."""
    code = "from perdure.host.process import worker_identity; print(worker_identity())"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_live_supervisor_is_believed_whatever_its_lease_says(tmp_path: Path) -> None:
    """If the supervisor's process is alive, the run counts as attended, even if the lease has
    expired because the process was stopped."""
    assert seen(tmp_path, a_run(process.worker_identity(), lease_until=0)) is Liveness.ATTENDED
    stopped = subprocess.Popen([sys.executable, "-c", "import perdure.host.process as p; print(p.worker_identity(), flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    with stopped:
        assert stopped.stdout is not None
        name = stopped.stdout.readline().strip()
        stopped.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        assert seen(tmp_path, a_run(name, lease_until=0)) is Liveness.ATTENDED
        stopped.kill()


def test_nothing_lives_of_a_dead_supervisor_without_an_agent(tmp_path: Path) -> None:
    """A supervisor was killed before its agent began, or together with it. The run counts as
    interrupted, although the lease is still valid."""
    worker = a_dead_worker()
    assert seen(tmp_path, a_run(worker)) is Liveness.INTERRUPTED
    agent = an_agent(tmp_path)
    agent.wait(0)
    assert seen(tmp_path, a_run(worker)) is Liveness.UNATTENDED
    agent.kill()
    assert seen(tmp_path, a_run(worker)) is Liveness.INTERRUPTED


def test_a_shim_that_does_not_show_its_mark_yet_is_ended(tmp_path: Path) -> None:
    """A process that was just started shows no environment for a moment. The shim is then found by
    its identity, and the call returns only when the shim has ended."""
    ends_late = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(time.sleep(1)))"
    code = f"{ends_late}; print('', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as shim:
        assert shim.stdout is not None and shim.stdout.readline()
        known = process.Identity.of(shim.pid)
        assert known is not None
        process.Process(tmp_path, known, f"r.{uuid4().hex}").kill()
        assert not known.alive()


def test_an_agent_lives_without_its_shim(tmp_path: Path) -> None:
    """If only the shim was killed, the agent continues, and the run is not reported as dead."""
    worker, agent = a_dead_worker(), an_agent(tmp_path)
    assert agent.agent_pid is not None and agent.shim is not None
    agent.shim.send(signal.SIGKILL)
    os.waitpid(agent.shim.pid, 0)
    try:
        assert seen(tmp_path, a_run(worker)) is Liveness.UNATTENDED
    finally:
        process.end_all(agent.mark, 0)
    assert seen(tmp_path, a_run(worker)) is Liveness.INTERRUPTED


@pytest.mark.parametrize("change", ["pid was given again", "machine was started again"])
def test_a_supervisor_of_another_time_is_dead(tmp_path: Path, change: str) -> None:
    """A process with the supervisor's pid but another start time is another process. After a reboot
    no process is the same."""
    host, boot, pid, starttime = process.worker_identity().rsplit(":", 3)
    name = (
        f"{host}:{boot}:{pid}:{int(starttime) + 1}"
        if "pid" in change
        else f"{host}:00000000.{namespace()}:{pid}:{starttime}"
    )
    assert seen(tmp_path, a_run(name)) is Liveness.INTERRUPTED


def test_another_host_is_known_by_its_lease_alone(tmp_path: Path) -> None:
    """The processes of another host cannot be seen from here, so its run counts as attended as long
    as the lease is valid."""
    run = a_run(ELSEWHERE, host="there")
    assert seen(tmp_path, run, host=HERE) is Liveness.ATTENDED
    assert seen(tmp_path, run, LATER + 1, HERE) is Liveness.INTERRUPTED


@pytest.mark.linux
def test_another_container_is_known_by_its_lease_and_its_lock(tmp_path: Path) -> None:
    """The pids of a supervisor in another pid namespace belong to other processes here. So it
    counts as alive as long as its lease is valid, and its agent is known by the lock that the shim
    holds."""
    program = (
        "import os, sys; from pathlib import Path; from perdure.host import process; from perdure.model "
        "import Command\nstate = Path(sys.argv[1])\nprocess.start(Command(argv=('/bin/sleep', "
        "'600'), stdin=b''), directory=state / 'runs/r/1', cwd=state, env=dict(os.environ),\n      "
        "        mark='r.1', deadline_s=0, grace_s=1).agent_pid\nprint(process.worker_identity(), "
        "flush=True); input()\n"
    )
    inside = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        "-c",
        program,
    ]
    container = subprocess.Popen(
        [*inside, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with container:
        assert container.stdout is not None
        run = a_run(container.stdout.readline().strip())
        assert boot_id()[:8] in run.worker and namespace() not in run.worker
        assert seen(tmp_path, run) is Liveness.ATTENDED
        assert seen(tmp_path, run, LATER + 1) is Liveness.UNATTENDED
        container.kill()
    until(lambda: seen(tmp_path, run, LATER + 1) is Liveness.INTERRUPTED)


def test_a_supervisor_that_ended_with_its_run_is_no_dead_one(tmp_path: Path) -> None:
    """If the supervisor and its run end between the probe's first and second read, the run does not
    count as interrupted."""
    run = a_run(a_dead_worker())
    assert seen(tmp_path, run, again=replace(run, state=RunState.SUCCEEDED)) is None
    assert (
        seen(tmp_path, run, again=replace(run, worker=process.worker_identity()))
        is Liveness.ATTENDED
    )
    assert seen(tmp_path, replace(run, state=RunState.QUEUED)) is None
