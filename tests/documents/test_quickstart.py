"""The quickstart: every command of the page is typed into a terminal of 80 by 24, with the real
Claude Code. The screens are compared with files that a person can read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import spread
from tests.journeys.pages import Reader, commands, machine
from tests.journeys.stage import Stage

PAGE = Path(__file__).parents[2] / "docs/quickstart.md"
SCRIPT = """match wrongly
by history
say I look at the prices first.
run echo rounded > cart.py; git add cart.py; git commit -qm "Round the prices"
---
say The rounding is fixed, and a test shows it. The cause was a division that cut off the cents instead of rounding them.
===
match docstring
by history
run test -e again || { touch again; sleep 600; }
---
say Every public function has a docstring.
---
say The tests are as they were.
===
match dependencies
by history
say I look for newer versions.
run touch again; sleep 600
"""
MORE = ("perdure ls\n", "perdure logs docs --tail 4\n", "perdure cost\n", "perdure rum\n")
"""Commands that are not on the page, but that a newcomer types next."""
SAID = "I look for newer versions."


@pytest.fixture
def quickstart() -> Iterator[Stage]:
    yield from machine(SCRIPT)


def test_the_quickstart_looks_as_it_did(quickstart: Stage) -> None:
    """Each command's screen is the one that a person approved last. Nothing is wider than the
    terminal, and a success has its color. The agent is killed as the page says."""
    stage = quickstart
    shop = spread.rename(stage.repo, stage.home / "shop")
    stage.repo = shop
    workdirs = stage.home / ".local/share/perdure/.perdure/work"
    reader = Reader(stage, stage.home)
    typed = [command for _, command in commands(PAGE.read_text())]
    assert typed[0] == "pipx install .\n" and len(typed) == 16, typed
    try:
        for command in (*typed[1:], *MORE):
            if command.startswith("perdure show docs"):
                continue  # the other terminal, below
            reader.begin(command)
            if "--name docs" in command:
                stage.until(lambda: list(workdirs.glob("shop--docs-*/again")), "the agent works")
                shown = stage.perdure("show", "docs").out
                found = re.search(r"process +(\d+)", shown)
                assert found, shown
                os.kill(int(found[1]), signal.SIGKILL)
            if "logs -f" in command:
                reader.terminal.shows(SAID)
                reader.terminal.type("C-c")
            reader.end()
            if "--detach" in command:
                stage.until(lambda: list(workdirs.glob("shop--nightly-*/again")), "the agent works")
            if "--name rounding" in command:
                assert "\x1b[32m✓ rounding" in reader.terminal.tmux("capture-pane", "-p", "-e")
            if "doctor" in command:
                # The output of this command depends on the machine, so its screen is not compared.
                assert reader.code == 0 and "ok" in reader.screens.pop().splitlines()[-1]
    finally:
        reader.close()
    reader.compare("quickstart.txt")
    assert (
        "Round the prices"
        in subprocess.run(
            ["git", "log", "--format=%s", "perdure/rounding"],
            cwd=shop,
            env=stage.environ,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    stage.nothing_survives()
