"""The programs of the documentation, unchanged, with the real Claude Code and Codex."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.patience import PATIENCE_S

TOP = Path(__file__).parents[2]
TWO_TURNS = """by history
run echo fixed > one.txt
---
say The first file is written.
---
run echo tested > test_one.txt
---
say A test is there, too.
"""
KILLED = """by history
run echo begun > one.txt; test -e again.txt || { touch again.txt; kill -9 $PPID; sleep 60; }
---
say It went on.
"""


@pytest.fixture
def stage() -> Iterator[Callable[[str, str], Stage]]:
    """Make a machine with an agent and a scripted model."""
    directory = Path(tempfile.mkdtemp(prefix="pe"))
    made: list[Stage] = []

    def make(script: str, agent: str) -> Stage:
        extra = {"PERDURE_PERMISSIONS": "full", "PERDURE_AGENT": agent}
        made.append(Stage(directory, agent, Rehearsal(script).start(), extra=extra))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def play(stage: Stage, program: str, *prompts: str) -> str:
    """Run a program as the page says, and return its output."""
    done = subprocess.run(
        [sys.executable, str(TOP / "examples" / program), str(stage.repo), *prompts],
        cwd=stage.directory,
        env=stage.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_fix(stage: Callable[[str, str], Stage]) -> None:
    """`fix.py` with Claude Code prints both answers and continues natively. Afterwards its files
    are in the checkout."""
    one = stage(TWO_TURNS, "claude")
    lines = play(one, "fix.py", "Write one.txt.").splitlines()
    assert lines[:2] == ["The first file is written.", "A test is there, too."]
    assert lines[2].startswith("conversation: native, ")
    assert lines[3:] == ["changed: one.txt", "changed: test_one.txt"]
    assert (one.repo / "test_one.txt").read_text() == "tested\n"
    one.nothing_survives()


def test_many(stage: Callable[[str, str], Stage]) -> None:
    """`many.py` with Codex completes all tasks, each on its own branch. It prints the last answer
    of each task, which Codex does not repeat at the end of its turn. It can be run again."""
    one = stage("by history\nrun echo x > one.txt\n---\nsay All is done.\n", "codex")
    names = set()
    for prompts in (("First.", "Second.", "Third."), ("First.",)):
        for line in play(one, "many.py", *prompts).splitlines():
            name, state, branch, said = line.split(maxsplit=3)
            assert (state, branch, said) == ("succeeded", f"perdure/{name}", "All is done.")
            names.add(name)
    assert len(names) == 4
    one.nothing_survives()


def test_watch(stage: Callable[[str, str], Stage]) -> None:
    """`watch.py` prints the actions of an agent that is killed during a tool call, and of the next
    attempt in the same conversation."""
    one = stage(KILLED, "claude")
    lines = play(one, "watch.py", "Write one.txt.").splitlines()
    assert lines[0].startswith("[1] Bash: echo begun > one.txt")
    assert "[1] failed, fresh" in lines
    assert lines[lines.index("[2] It went on.") + 1] == "[2] succeeded, native"
    assert [line.split(":")[0] for line in lines[-2:]] == ["attempt 1", "attempt 2"]
    one.nothing_survives()
