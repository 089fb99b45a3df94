"""How an agent starts and ends: its exit, its input, its limits. An end is recorded only when no
process is left."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from perdure.errors import Conflict, UsageError
from perdure.host.process import find, run_quick, start, survivors
from perdure.model import Command
from tests.process.agents import Launcher, content, daemon, gone, until

pytestmark = pytest.mark.usefixtures("shim")


def test_a_normal_end(launch: Launcher) -> None:
    """The Exit of an agent that ends normally has its code, cause, time and output."""
    process = launch("echo said; echo warned >&2; exit 3")
    end = process.wait()
    assert end is not None
    assert (end.code, end.signal, end.cause, end.stderr_tail) == (3, None, "exited", "warned\n")
    assert end.at > 0
    assert process.stdout.read_bytes() == b"said\n"
    assert not process.alive()


def test_an_end_by_a_signal(launch: Launcher) -> None:
    """The Exit of an agent that another program kills has a signal and no code."""
    end = launch("kill -9 $$").wait()
    assert end is not None
    assert (end.code, end.signal, end.cause) == (None, 9, "exited")


def test_an_agent_without_a_record_does_not_live(launch: Launcher, directory: Path) -> None:
    """If the agent's record cannot be written, agent and children are ended, and the recorded end
    gives the reason."""
    (directory / "agent.json" / "in the way").mkdir(parents=True)
    process = launch("sleep 600 & sleep 600")
    end = process.wait()
    assert end is not None
    assert (end.code, end.signal) == (None, 9)
    assert "its record cannot be written" in end.stderr_tail


def test_input_and_place(launch: Launcher, tmp_path: Path) -> None:
    """The agent gets its complete stdin and then its end. It has its own cwd, and leads its own
    session."""
    prompt = b"first\n" + b"x" * 300_000 + b"\xff\x00"
    process = launch("cat; pwd >&2; ps -o sid= -p $$ | tr -d ' ' >&2; echo $$ >&2", prompt)
    end = process.wait()
    assert end is not None
    assert process.stdout.read_bytes() == prompt
    cwd, session, pid = end.stderr_tail.split()
    assert (cwd, session) == (str(tmp_path / "work"), pid)
    assert process.agent_pid == int(pid)


def test_the_agent_has_exactly_the_environment_given(
    launch: Launcher, env: dict[str, str], mark: str
) -> None:
    """The agent gets exactly the given environment and the variable with the mark, and nothing from
    the supervisor's environment. If the command sets a variable itself, its value is used."""
    process = launch(("env", "-0"), extra={"EXTRA": "é\n=1", "TMPDIR": "/elsewhere"})
    assert process.wait() is not None
    seen = dict(
        entry.split("=", 1) for entry in process.stdout.read_bytes().decode().split("\0") if entry
    )
    assert seen == {**env, "EXTRA": "é\n=1", "TMPDIR": "/elsewhere", "PERDURE_ATTEMPT": mark}


@pytest.mark.linux
def test_a_runs_environment_does_not_choose_the_back_end(launch: Launcher) -> None:
    """The variable that selects the portable back end is for perdure. In a run's environment it
    reaches the agent and has no effect on the shim."""
    process = launch('printf %s "$PERDURE_HOST"', extra={"PERDURE_HOST": "portable"})
    end = process.wait()
    assert end is not None and end.code == 0
    assert process.stdout.read_bytes() == b"portable"


def test_signals_are_fresh(launch: Launcher) -> None:
    """The agent neither ignores nor blocks any signal, whatever its parents do."""
    process = launch(("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"))
    assert process.wait() is not None
    glibcs_own = 3 << 31  # Signals 32 and 33, which glibc's posix_spawn leaves ignored.
    masks = [int(line.split()[1], 16) for line in process.stdout.read_text().splitlines()]
    assert [mask & ~glibcs_own for mask in masks] == [0, 0]


def test_a_polite_stop(launch: Launcher) -> None:
    """At a stop the agent gets TERM and may print its last output. Its own exit code is kept beside
    the cause."""
    process = launch("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    until(lambda: content(process.stdout))
    process.stop()
    end = process.wait()
    assert end is not None
    assert (end.code, end.cause) == (7, "stopped")
    assert process.stdout.read_bytes() == b"ready\nbye\n"


def test_a_stop_in_the_first_moment(launch: Launcher) -> None:
    """A stop that comes before the shim is ready is not lost, and the end has its cause."""
    process = launch("sleep 600")
    process.stop()
    end = process.wait()
    assert end is not None
    assert end.cause == "stopped"


def test_a_stop_just_before_the_end(launch: Launcher) -> None:
    """If the shim sees a stop and the agent's end at the same moment, the end counts as a stop."""
    process = launch("exec sleep 600")
    agent = process.agent_pid
    assert agent is not None
    assert process.shim is not None
    os.kill(process.shim.pid, signal.SIGSTOP)
    process.stop("stalled")
    os.kill(agent, signal.SIGKILL)
    os.kill(process.shim.pid, signal.SIGCONT)
    end = process.wait()
    assert end is not None
    assert (end.signal, end.cause) == (9, "stalled")


@pytest.mark.parametrize("cause", ["stalled", "budget_spent"])
def test_the_supervisors_word_is_the_cause(launch: Launcher, cause: str) -> None:
    """The reason why the supervisor stopped an agent is in its Exit."""
    process = launch("exec sleep 600")
    until(lambda: process.agent_pid)
    process.stop(cause)
    end = process.wait()
    assert end is not None
    assert (end.cause, end.signal) == (cause, 15)


def test_an_agent_deaf_to_term(launch: Launcher) -> None:
    """An agent that ignores TERM gets KILL after the grace period, and so do its tools."""
    process = launch(
        "trap '' TERM; sleep 600 & echo ready; while :; do sleep 0.05; done", grace_s=0.2
    )
    until(lambda: content(process.stdout))
    process.stop()
    end = process.wait()
    assert end is not None
    assert (end.signal, end.cause) == (9, "stopped")


def test_the_deadline(launch: Launcher) -> None:
    """The shim ends an agent at its deadline, even if no process waits for it."""
    end = launch("exec sleep 600", deadline_s=0.2).wait()
    assert end is not None
    assert (end.signal, end.cause) == (15, "deadline")


def test_no_deadline(launch: Launcher) -> None:
    """A deadline of 0 means no deadline."""
    end = launch("sleep 0.1", deadline_s=0).wait()
    assert end is not None
    assert (end.code, end.cause) == (0, "exited")


def test_wait_gives_up_in_time(launch: Launcher) -> None:
    """A wait with a timeout returns None while the agent runs, and leaves it running."""
    process = launch("exec sleep 600")
    assert process.wait(0.05) is None
    assert process.alive()
    process.kill()


@pytest.mark.parametrize("bare", [pytest.param(True, marks=pytest.mark.linux), False])
def test_a_daemon_that_gets_away_is_ended(launch: Launcher, tmp_path: Path, bare: bool) -> None:
    """A daemon with a new session, a double fork, closed files, no environment and no reaction to
    TERM is ended before exit.json is written."""
    pid_file = tmp_path / "pid"
    process = launch(f"{daemon(pid_file, bare=bare)}; exit 0", grace_s=0.2)
    end = process.wait()
    assert end is not None
    assert (end.code, end.cause) == (0, "exited")
    assert gone(int(pid_file.read_text()))
    assert json.loads((process.directory / "exit.json").read_text())["survivors_killed"] == 1


@pytest.mark.linux
def test_a_storm_of_daemons(launch: Launcher) -> None:
    """Processes that fork again and again are all ended."""
    storm = (
        "import os,signal,time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        end = time.monotonic() + 30\n"
        "        while time.monotonic() < end:\n"
        "            os.setsid() if os.getpid() != os.getsid(0) else None\n"
        "            if os.fork(): os._exit(0)\n"
        "            time.sleep(0.001)\n"
        "        os._exit(0)\n"
        "time.sleep(0.3)\n"
    )
    process = launch((sys.executable, "-I", "-S", "-c", storm), grace_s=0.1)
    end = process.wait()
    assert end is not None
    assert (end.code, end.cause) == (0, "exited")
    assert json.loads((process.directory / "exit.json").read_text())["survivors_killed"] >= 8


def test_kill_ends_all_at_once(launch: Launcher, tmp_path: Path, mark: str) -> None:
    """When `kill` returns, the whole process tree has ended, together with the daemons of an agent
    that ignores TERM, and the end is recorded."""
    pid_file = tmp_path / "pid"
    process = launch(
        f"trap '' TERM; {daemon(pid_file)}; while :; do sleep 0.05; done", grace_s=600.0
    )
    until(lambda: content(pid_file))
    process.kill()
    assert survivors(mark) == []
    assert gone(int(pid_file.read_text()))
    end = process.wait(0)
    assert end is not None
    assert (end.signal, end.cause) == (9, "stopped")


def test_a_frozen_shim_is_no_shelter(launch: Launcher, mark: str) -> None:
    """`kill` also ends a shim that SIGSTOP has stopped. Then no process saw the agent's end."""
    process = launch("exec sleep 600")
    until(lambda: process.agent_pid)
    assert process.shim is not None
    os.kill(process.shim.pid, signal.SIGSTOP)
    process.kill()
    assert survivors(mark) == []
    end = process.wait(0)
    assert end is not None
    assert end.cause == "lost"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("/nowhere/agent",), 127, "cannot start /nowhere/agent: No such file or directory"),
        (("/etc/passwd",), 126, "cannot start /etc/passwd: Permission denied"),
        (("/bin/echo", "x" * 200_000), 126, "cannot start /bin/echo: Argument list too long"),
    ],
)
def test_a_program_that_cannot_start(
    launch: Launcher, argv: tuple[str, ...], code: int, words: str
) -> None:
    """A program that is missing, not executable, or has too long arguments gives an Exit like any
    other, with a sentence."""
    process = launch(argv)
    end = process.wait()
    assert end is not None
    assert (end.code, end.cause, end.stderr_tail) == (code, "exited", f"perdure: {words}\n")
    assert process.agent_pid is None


def test_a_missing_directory(launch: Launcher, tmp_path: Path) -> None:
    """If the workdir is missing, the Exit gives that as the reason."""
    end = launch("true", cwd=tmp_path / "not").wait()
    assert end is not None
    assert (end.code, end.stderr_tail) == (
        126,
        f"perdure: cannot enter {tmp_path}/not: No such file or directory\n",
    )


def test_an_environment_too_large_for_any_program(
    launch: Launcher, env: dict[str, str], directory: Path
) -> None:
    """If not even the shim can be started, the end is still recorded."""
    end = launch("true", env={**env, "BIG": "x" * 200_000}).wait()
    assert end is not None
    assert (end.code, end.stderr_tail) == (
        126,
        "perdure: cannot start /bin/sh: Argument list too long\n",
    )
    found = find(directory)
    assert found is not None
    assert found.wait(0) == end


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        ((), {}),
        (("a\0b",), {}),
        (("a\ud800",), {}),
        (("true",), {"A=B": "1"}),
        (("true",), {"A": "1\0"}),
        (("true",), {"": "1"}),
    ],
)
def test_what_no_program_can_be_given(
    argv: tuple[str, ...], env: dict[str, str], tmp_path: Path, directory: Path, mark: str
) -> None:
    """A command that no program can be given (such as one with a NUL) is refused before anything is
    made."""
    with pytest.raises(UsageError):
        start(
            Command(argv=argv, stdin=b""),
            directory=directory,
            cwd=tmp_path,
            env=env,
            mark=mark,
            deadline_s=1,
        )
    assert not directory.exists()


def test_a_directory_is_for_one_attempt(launch: Launcher) -> None:
    """A second start in a used directory is refused, and does not affect the first agent."""
    process = launch("read line; echo $line", b"one\n")
    with pytest.raises(Conflict):
        launch("echo two")
    assert process.wait() is not None
    with pytest.raises(Conflict):
        launch("echo three")
    assert process.stdout.read_bytes() == b"one\n"


def test_secrets_are_nowhere(launch: Launcher, env: dict[str, str], tmp_path: Path) -> None:
    """The values of the environment are in no file of the attempt and in no argv. Only the owner
    can read the files."""
    process = launch("exec sleep 600", b"prompt", env={**env, "API_KEY": "s3cr3t-canary"})
    pid = until(lambda: process.agent_pid)
    assert process.shim is not None
    for each in (pid, process.shim.pid):
        environ = Path(f"/proc/{each}/environ")
        # While the kernel starts a program in the process, its environment is empty for a moment.
        assert b"s3cr3t-canary" in until(environ.read_bytes)
        assert b"s3cr3t-canary" not in Path(f"/proc/{each}/cmdline").read_bytes()
    process.stop()
    assert process.wait() is not None
    files = list(process.directory.iterdir())
    assert {
        "stdin",
        "launch",
        "shim.json",
        "agent.json",
        "stdout",
        "stderr",
        "cause",
        "exit.json",
    } <= {file.name for file in files}
    for file in files:
        assert b"s3cr3t-canary" not in file.read_bytes(), file.name
        assert file.stat().st_mode & 0o077 == 0, file.name
    assert process.directory.stat().st_mode & 0o777 == 0o700


def test_the_agents_files_get_the_users_umask(launch: Launcher, tmp_path: Path) -> None:
    """perdure's own files are private, but the agent's files get the user's umask."""
    before = os.umask(0o027)
    try:
        process = launch("umask")
    finally:
        os.umask(before)
    assert process.wait() is not None
    assert process.stdout.read_text().strip() == "0027"


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("echo out; echo err >&2; exit 4", 4, "out\nerr\n"),
        (("printf", "a b"), 0, "a b"),
        ("kill -9 $$", 137, ""),
        ("sleep 600 & echo done", 0, "done\n"),
    ],
)
def test_quick_commands(
    command: str,
    code: int,
    output: str,
    directory: Path,
    tmp_path: Path,
    env: dict[str, str],
    mark: str,
) -> None:
    """A verify command returns its code and its complete output, and leaves no process."""
    assert run_quick(
        command, directory=directory, cwd=tmp_path, env=env, mark=mark, timeout_s=30
    ) == (code, output)
    assert survivors(mark) == []


def test_a_quick_command_that_hangs(
    directory: Path, tmp_path: Path, env: dict[str, str], mark: str
) -> None:
    """A verify command is ended at its timeout with code 124. Its output until then is kept."""
    for seconds in (
        0.3,
        2,
        10,
        60,
    ):  # On a busy machine the command may not begin within the shortest timeout.
        code, output = run_quick(
            "echo begun; sleep 600",
            directory=directory,
            cwd=tmp_path,
            env=env,
            mark=mark,
            timeout_s=seconds,
        )
        assert code == 124 and output.endswith(f"[deadline after {seconds} s]")
        if output.startswith("begun"):
            break
    assert output == f"begun\n\n[deadline after {seconds} s]"
    assert survivors(mark) == []
