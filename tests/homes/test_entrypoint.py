"""`perdure entrypoint` as PID 1 of a container: it checks the volume, passes signals on, leaves no
process behind, and exits with the command's exit code.

Here a container is a user, mount and process namespace with a file system for the volume, as a
container engine makes it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

TOP = Path(__file__).parents[2]
CONTAINER = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
]
ENTRYPOINT = f"exec {sys.executable} -m perdure entrypoint"


def script(top: Path, entrypoint: str, *, before: str = "") -> str:
    """Return the shell script of the container: it mounts the volume, and is then replaced by the
    entrypoint."""
    volume = shlex.quote(str(top / "volume"))
    return f"{before or f'mount --bind {volume} {volume}'}; {entrypoint}"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("volume", "home"):
        (tmp_path / name).mkdir()
    return tmp_path


def environ(top: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(top / "home"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(TOP / "src"),
    }


def run(top: Path, command: str, *words: str, before: str = "", code: int = 0) -> str:
    """Run the container to its end, check its exit code, and return its output."""
    entrypoint = (
        f"{ENTRYPOINT} --volume {top}/volume {' '.join(words)} -- sh -c {shlex.quote(command)}"
    )
    done = subprocess.run(
        [*CONTAINER, script(top, entrypoint, before=before)],
        env=environ(top),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def running(top: Path, command: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the container. Wait until its command has printed a line. Yield the container, and the
    process id of its PID 1 as seen from outside."""
    entrypoint = (
        f"{ENTRYPOINT} --volume {top}/volume --agent claude --grace 20 -- sh -c "
        f"{shlex.quote(command)}"
    )
    with subprocess.Popen(
        [*CONTAINER, script(top, entrypoint)],
        env=environ(top),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == "ready\n"
        (child,) = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        yield container, int(child)


def test_the_command_runs_with_the_homes_linked_and_its_exit_code_is_given(top: Path) -> None:
    """The command is not PID 1. It finds the homes at their usual places, and perdure's directories
    by variables. Its exit code is passed on. No variable of an agent is set, so a second shell in
    the container finds the same homes."""
    said = run(
        top,
        'echo "$$ $PERDURE_STATE $CLAUDE_CONFIG_DIR$CODEX_HOME$GEMINI_CLI_HOME"; '
        'readlink "$HOME/.claude" "$HOME/.claude.json" "$HOME/.codex" "$HOME/.gemini" '
        '"$HOME/.local/share/opencode"; exit 7',
        code=7,
    )
    first, *places = said.splitlines()
    pid, *variables = first.split()
    assert int(pid) > 1
    assert variables == [f"{top}/volume/perdure/state"]
    homes = ("claude", "claude/.claude.json", "codex", "gemini/.gemini", "opencode/data/opencode")
    assert places == [f"{top}/volume/homes/{name}" for name in homes]


def test_the_homes_are_moved_by_variables_where_that_is_asked_for(top: Path) -> None:
    """With `--variable` the command gets the variables that name the agents' homes on the volume.
    Only OpenCode's home is linked, because OpenCode has no such variable. The next container,
    without the flag, has links to the same files."""
    said = run(
        top,
        'echo "$CLAUDE_CONFIG_DIR $CODEX_HOME $GEMINI_CLI_HOME"; ls -A "$HOME"; '
        'echo kept > "$CLAUDE_CONFIG_DIR/kept"',
        "--variable",
    )
    places, *home = said.splitlines()
    assert places.split() == [
        f"{top}/volume/homes/{name}" for name in ("claude", "codex", "gemini")
    ]
    assert set(home) == {".local", ".config"}
    assert run(top, 'echo "$CLAUDE_CONFIG_DIR"; cat "$HOME/.claude/kept"') == "\nkept\n"


def test_what_one_container_left_the_next_one_has(top: Path) -> None:
    """In a new container with an empty home and the same volume, the files of the agents' homes are
    there again, and perdure knows that the homes are linked."""
    run(
        top,
        'echo kept > "$HOME/.claude/kept"; echo "{}" > "$HOME/.claude.json"; '
        'echo own > "$HOME/.local/share/opencode/own"',
    )
    (top / "home").rename(top / "gone")
    (top / "home").mkdir()
    found = run(top, 'cd "$HOME"; cat .claude/kept .claude.json .local/share/opencode/own')
    assert found == "kept\n{}\nown\n"


def test_a_signal_reaches_the_command_and_its_death_by_one_is_told(top: Path) -> None:
    """SIGTERM to PID 1 is passed on to the command. If the command dies by SIGKILL, the exit code
    is 137; if it is missing, 127."""
    with running(
        top, "trap 'echo stopping; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    ) as (container, first):
        os.kill(first, signal.SIGTERM)
        assert container.communicate(timeout=PATIENCE_S)[0] == "stopping\n"
    assert container.returncode == 5
    run(top, "kill -9 $$", code=137)
    entrypoint = f"{ENTRYPOINT} --volume {top}/volume --agent claude -- no-such-program"
    done = subprocess.run(
        [*CONTAINER, script(top, entrypoint)], env=environ(top), capture_output=True, text=True
    )
    assert (done.returncode, "cannot start no-such-program" in done.stderr) == (127, True)


def test_orphans_are_collected_while_the_command_lives(top: Path) -> None:
    """PID 1 adopts a process whose parent has ended, and leaves no zombie when that process
    ends."""
    (top / "orphan").write_text("#!/bin/sh\necho $$ > pid.new; mv pid.new pid; sleep 0.2\n")
    waited = (
        f"cd {top}; sh -c 'sh orphan &'; until test -e pid; do sleep 0.05; done; while test -e "
        "/proc/$(cat pid); do sleep 0.05; done"
    )
    assert run(top, f"{waited}; echo collected", "--agent", "claude").strip() == "collected"


def test_what_the_command_leaves_behind_ends_in_good_order(top: Path) -> None:
    """Processes that the command leaves behind get SIGTERM and time to write their data before the
    container ends. Their number is printed."""
    left = f"""trap 'echo in order > {top}/order; exit' TERM; echo up > {top}/up; while :; do sleep 0.05; done"""
    said = run(
        top,
        f"setsid sh -c {shlex.quote(left)} & until test -e {top}/up; do sleep 0.05; done",
        "--agent",
        "claude",
    )
    assert (top / "order").read_text() == "in order\n"
    assert "had left running" in said


def test_nothing_starts_without_the_volume(top: Path) -> None:
    """An empty mount point, or a volume other than the expected one, ends the container with exit
    code 7 and a reason."""
    assert "a mount point" in run(top, "touch started", before=f"cd {top}", code=7)
    run(top, "true", "--agent", "claude")
    assert "another volume" in run(
        top, "touch started", "--volume-id", "0000", before=f"cd {top}", code=7
    )
    assert not (top / "started").exists()


def test_a_volume_that_comes_late_is_waited_for(top: Path) -> None:
    """With `--wait`, the command starts as soon as the volume is mounted."""
    late = (
        f"(until test -e {top}/go; do sleep 0.05; done; mount --bind {top}/volume {top}/volume) & "
    )
    entrypoint = f"{ENTRYPOINT} --volume {top}/volume --agent claude --wait 60 -- echo started"
    with subprocess.Popen(
        [*CONTAINER, late + entrypoint], env=environ(top), stdout=subprocess.PIPE, text=True
    ) as container:
        until = time.monotonic() + PATIENCE_S
        while b"entrypoint" not in b"".join(_commands(container.pid)):
            assert time.monotonic() < until
            time.sleep(0.02)
        (top / "go").touch()
        assert container.communicate(timeout=PATIENCE_S)[0] == "started\n"
    assert container.returncode == 0


def _commands(pid: int) -> Iterator[bytes]:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield Path(f"/proc/{child}/cmdline").read_bytes()


def test_it_works_for_an_ordinary_user(top: Path) -> None:
    """The entrypoint works as uid 10001 without rights, on a volume that this user owns, as in the
    image."""
    user = "exec unshare --user --map-user=10001 --map-group=10001"
    words = ["--volume", f"{top}/volume", "--", "sh", "-c", "id -u; test -w $HOME/.claude"]
    entrypoint = shlex.join([sys.executable, "-m", "perdure", "entrypoint", *words])
    done = subprocess.run(
        [*CONTAINER, script(top, f"{user} {entrypoint}")],
        env=environ(top),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "10001\n"), done.stderr
