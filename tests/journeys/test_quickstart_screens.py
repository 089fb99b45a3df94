"""The quickstart at a terminal of 80 by 24, against screens that a person can read.

`WRITE_SCREENS=1 pytest tests/journeys/test_quickstart_screens.py` writes them again; look at
the difference before it is committed. What differs from run to run is replaced by as many
characters, so that the layout stays.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.cli.style import width_of
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal

pytestmark = pytest.mark.journey

GOLDEN = Path(__file__).parent / "screens/quickstart.txt"
SCRIPT = """by history
say I look at the prices first.
run echo rounded > cart.py
---
say The rounding is fixed, and a test shows it. The cause was a division that cut off the cents instead of rounding them.
---
say The tests are as they were.
"""
COMMANDS = (
    "perdure run --name rounding --permissions full 'Prices are rounded wrongly. Fix it.'",
    "perdure ls",
    "perdure show",
    "perdure why",
    "perdure update rounding 'Leave the tests alone.'",
    "perdure logs --tail 4",
    "perdure cost",
    "perdure rum",
)
VARYING = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), lambda m: "i" * len(m[0])),
    (re.compile(r"(?<=/work/)[\w-]+"), lambda m: "w" * len(m[0])),
    (re.compile(r"(?<=claude, )[0-9a-f]{8}"), lambda m: "i" * len(m[0])),
    (re.compile(r"(?<=commit )[0-9a-f]{12}"), lambda m: "c" * len(m[0])),
    (re.compile(r"(?<=run:)[0-9a-f]{32}"), lambda m: "r" * len(m[0])),
    (re.compile(r"(?<=account )[0-9a-f]{8}"), lambda m: "a" * len(m[0])),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), lambda m: "YYYY-MM-DD hh:mm:ss"),
    (re.compile(r"\b\d{6}\b"), lambda m: "n" * len(m[0])),
    (re.compile(r"· \d+s ·"), lambda m: "· Ns ·"),
    (re.compile(r"\b\d+s\b"), lambda m: "N" * (len(m[0]) - 1) + "s"),
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix="pq"))
    with Rehearsal(SCRIPT) as rehearsal:
        one = Stage(directory, "claude", rehearsal)
        yield one
        one.close()
    shutil.rmtree(directory, ignore_errors=True)


def plain(screen: str) -> str:
    for pattern, replacement in VARYING:
        screen = pattern.sub(replacement, screen)
    return screen


def test_the_quickstart_looks_as_it_did(stage: Stage) -> None:
    """Each command's screen is the one that was last looked at by a person; nothing is wider than
    the terminal, and what failed or succeeded has its color."""
    command = stage.directory / "bin"
    command.mkdir()
    (command / "perdure").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m perdure "$@"\n'
    )
    (command / "perdure").chmod(0o755)
    shown = Terminal(stage, 80, PATH=f"{command}:{stage.environ['PATH']}")
    screens = []
    try:
        for number, words in enumerate(COMMANDS):
            shown.type(f"clear; {words}; PS1='done {number}> '", "Enter")
            lines = shown.shows(f"\ndone {number}>")
            text = "\n".join(lines[: lines.index(f"done {number}>")])
            assert all(width_of(line) <= 80 for line in lines)
            screens.append(f"$ {words}\n{plain(text)}\n")
            if number == 0:
                assert "\x1b[32m✓ rounding" in shown.tmux("capture-pane", "-p", "-e")
    finally:
        shown.tmux("kill-server")
    found = "\n".join(screens)
    if os.environ.get("WRITE_SCREENS"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")
