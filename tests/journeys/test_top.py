"""`perdure top` on a real terminal with a real agent: a run is watched, opened, stopped and
continued."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal, on_terminal
from tests.journeys.test_requests import requests
from tests.journeys.test_requests_told import STOPS, command, escalated, outside, run

pytestmark = pytest.mark.journey

SLOW = """by history
run echo one > one.txt; while ! test -e go.txt; do sleep 0.1; done
---
say All of it is written.
"""
TOP = f"{shlex.quote(sys.executable)} -m perdure top"


@pytest.fixture
def one() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix="pt"))
    made = Stage(directory, "claude", Rehearsal(SLOW).start())
    yield made
    made.close()
    made.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def test_a_run_is_stopped_and_sent_on_from_the_board(one: Stage) -> None:
    """The board shows the agent's command while it runs. Enter shows the log; `s` and `y` stop the
    run; `r` continues it natively to its end. The terminal is restored afterwards."""
    shown = Terminal(one, 110)
    try:
        shown.shows("ready>")
        shown.type(TOP, "Enter")
        shown.shows("no runs yet")
        supervisor = one.start(
            "run",
            "--agent",
            "claude",
            "--permissions",
            "full",
            "--name",
            "task",
            prompt="Write it down",
        )
        shown.shows("working  1")
        shown.shows("echo one > one.txt")
        shown.type("Enter")
        shown.shows("task  running, attempt 1")
        shown.shows("echo one > one.txt")
        shown.type("Escape")
        shown.shows("working  1")
        shown.type("s")
        shown.shows("Stop task?")
        shown.type("y")
        shown.shows("done  1")
        assert one.finish(supervisor).code == 130
        assert one.show()["state"] == "cancelled"
        (Path(one.show()["workspace"]["path"]) / "go.txt").touch()
        shown.type("r")
        shown.shows("task continues")
        one.until(lambda: one.show()["state"] == "succeeded", "the run has succeeded")
        assert [attempt["receipt"]["verdict"] for attempt in one.show()["attempts"]] == [
            "fresh",
            "native",
        ]
        shown.type("Space")
        shown.shows("receipt native")
        shown.type("q")
        shown.shows("ready>")
        flags = "#{alternate_on} #{cursor_flag} #{mouse_any_flag}"
        one.until(
            lambda: shown.tmux("display-message", "-p", flags).split() == ["0", "1", "0"],
            "the terminal is as it was",
        )
        shown.type("echo $((6*7))", "Enter")
        shown.shows("42")
    finally:
        shown.tmux("kill-server")


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_an_answer_on_the_board_makes_the_very_call_run_once(
    stage: Callable[..., Stage], agent: str, tmp_path: Path
) -> None:
    """Codex asks for a command that its sandbox stopped. On the board a person reads it and allows
    it. The run continues in the background; exactly that command runs, once, and the same command a
    second time is a new request, which the person refuses on the board."""
    file = outside(tmp_path)
    steps = [command(file), STOPS, escalated(file), escalated(file), STOPS, "say Without it.\n"]
    here = stage("---\n".join(steps))
    assert run(here)["state"] == "queued"
    here.nothing_survives()
    shown = Terminal(here, 160)
    try:
        shown.type(TOP, "Enter")
        shown.shows("i answers; 1 call was denied: exec_command")
        shown.type("i")
        screen = "\n".join(shown.shows("Allow it once?"))
        assert "tool: exec_command" in screen and f"cmd: echo ran >> {file}" in screen
        shown.type("y", "Enter")
        shown.shows("answered; task continues")
        here.until(lambda: len(requests(here)) == 2, "the agent asks again")
        assert file.read_text() == "ran\n"
        shown.shows("i answers;")
        shown.type("i")
        shown.shows("task  request 2")
        shown.type("not", "Space", "again", "Enter")
        here.until(lambda: here.show()["state"] == "succeeded", "the run has succeeded")
        shown.type("q")
    finally:
        shown.tmux("kill-server")
        written = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
    first, second = requests(here)
    assert written == "ran\n"
    assert (first["answer"], first["given"], second["answer"]) == ("allow", 2, "deny")
    assert second["words"] == "not again" and "@" in first["by"]
    assert here.show()["attempts"][1]["receipt"]["verdict"] == "native"


def test_where_there_is_no_board(one: Stage) -> None:
    """Into a pipe, or without the extra, `perdure top` prints one sentence that names what to do
    instead."""
    done = one.perdure("top")
    assert done.code == 2 and "needs a terminal" in done.err and "perdure ls" in done.err
    code, said = on_terminal(one, "top", TERM="dumb")
    assert code == 2 and "needs a terminal" in said
    gone = (
        "import sys; sys.modules['textual'] = None; from perdure.cli.main import main; "
        "sys.exit(main(['top']))"
    )
    started = subprocess.run(
        ["script", "-qec", f"{shlex.quote(sys.executable)} -c {shlex.quote(gone)}", "/dev/null"], env={**one.environ, "TERM": "xterm"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert started.returncode == 2
    assert (
        "perdure top needs textual, which is not installed" in started.stdout
        and "[top]" in started.stdout
    )
