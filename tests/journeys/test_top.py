"""`perdure top` on a real terminal with a real agent: a run is watched, opened, stopped and
continued."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal, on_terminal

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


def test_where_there_is_no_board(one: Stage) -> None:
    """Into a pipe, or without the extra, one sentence says so and names what to do instead."""
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
