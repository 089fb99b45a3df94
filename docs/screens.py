"""Screenshots of the terminal for the documentation: real commands, a real agent, a real terminal.
`make screens` makes them again.

Each scene is typed into tmux, and the screen is drawn as an SVG below docs/images. Only the model
is scripted: the agent uses perdure's own model server.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal
from tests.journeys.test_conversations import begun_by_hand, by_hand

IMAGES = Path(__file__).parent / "images"
SCRIPT = """by history
say I look at the prices first.
run echo rounded > cart.py; test -e go.txt || { touch at-work.txt; sleep 60; }
---
say The rounding is fixed, and a test shows it.
"""
TASKS = {
    "rounding": "Prices are rounded wrongly in cart.py. Find out why, and fix it.",
    "release-notes": "Write the release notes for version 2.",
    "tests": "The test of the cart fails now and then. Make it steady.",
}
WITHOUT_FONTS = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S)
"""The SVG's template without its fonts, because the stylesheet would fetch them from another
server."""


def draw(stage: Stage, terminal: Terminal, name: str, title: str) -> None:
    """Draw the terminal's screen, without the empty lines at its end, as docs/images/NAME.svg."""
    pane = (
        terminal.tmux("capture-pane", "-p", "-e", "-N")
        .rstrip("\n ")
        .replace(str(stage.home), "/home/you")
        .replace(str(stage.repo), "/home/you/shop")
    )
    columns = int(terminal.tmux("display-message", "-p", "#{pane_width}"))
    console = Console(
        record=True, width=columns, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.from_ansi(pane), soft_wrap=False)
    IMAGES.mkdir(exist_ok=True)
    svg = console.export_svg(title=title, code_format=WITHOUT_FONTS, unique_id=name)
    (IMAGES / f"{name}.svg").write_text(svg.replace("Fira Code", "monospace"), encoding="utf-8")
    print(f"docs/images/{name}.svg")


def killed_and_continued(stage: Stage, open_terminal: Callable[[int], Terminal]) -> None:
    """Show a run whose agent is killed in its tool call, and then what `ls` and `why` say about the
    run."""
    shown = open_terminal(110)
    shown.type(
        'perdure run --name rounding --permissions full "Prices are rounded wrongly in cart.py. '
        'Find out why, and fix it."',
        "Enter",
    )
    workdirs = stage.home / ".local/share/perdure/.perdure/work"
    stage.until(lambda: list(workdirs.glob("*/at-work.txt")), "the agent is in its tool")
    for path in workdirs.iterdir():
        (path / "go.txt").touch()
    os.kill(stage.agent_pid(), signal.SIGKILL)
    shown.shows("receipt native")
    shown.shows("look at it")
    draw(stage, shown, "run", "the agent is killed in the middle of a command")
    shown.type("clear && perdure ls && perdure why rounding", "Enter")
    shown.shows("in the new part")
    stage.until(lambda: "\n".join(shown.screen()).rstrip().endswith("ready>"), "it is said")
    draw(stage, shown, "why", "what happened, and on which evidence")


def picked(stage: Stage, open_terminal: Callable[[int], Terminal]) -> None:
    """Show the picker, with conversations that a person began."""
    begun_by_hand(stage, "Explain how the cart adds up its prices.")
    by_hand(stage, "Write the release notes for version 2.")
    shown = open_terminal(110)
    shown.type("perdure resume", "Enter")
    shown.shows("Esc leave")
    draw(stage, shown, "resume", "choose a conversation")


def watched(stage: Stage, open_terminal: Callable[[int], Terminal]) -> None:
    """Show the board with three runs: one has ended, one was stopped, and one that is running is
    opened."""
    shown = open_terminal(110)
    workdirs = stage.home / ".local/share/perdure/.perdure/work"
    for number, (name, prompt) in enumerate(TASKS.items(), 1):
        shown.type(f'clear; perdure run -d --name {name} --permissions full "{prompt}"', "Enter")
        stage.until(
            lambda number=number: len(list(workdirs.glob("*/at-work.txt"))) == number,
            "the agent is in its tool",
        )
        if name == "rounding":
            next(iter(workdirs.iterdir()), workdirs).joinpath("go.txt").touch()
        if name != "tests":
            shown.type(f"clear; perdure stop {name}", "Enter")
            shown.shows(f"{name} is cancelled")
        if name == "rounding":
            shown.type("clear; perdure retry -q rounding && echo it has ended", "Enter")
            stage.until(lambda: stage.show("rounding")["state"] == "succeeded", "it has succeeded")
    shown.type("clear; perdure top", "Enter")
    shown.shows("done  2")
    shown.type("Space")
    shown.shows("I look at the prices first")
    draw(stage, shown, "top", "perdure top")
    shown.type("q")
    stage.perdure("stop", "tests")


def main() -> int:
    for agent, script, scene in (
        ("claude", SCRIPT, watched),
        ("claude", SCRIPT, killed_and_continued),
        ("claude", "by history\nsay It adds them one by one.\n", picked),
    ):
        directory = Path(tempfile.mkdtemp(prefix="ps"))
        with Rehearsal(script) as rehearsal:
            stage = Stage(directory, agent, rehearsal)
            made: list[Terminal] = []
            command = directory / "bin"
            command.mkdir()
            (command / "perdure").write_text(
                f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m perdure "$@"\n'
            )
            (command / "perdure").chmod(0o755)

            def open_terminal(
                columns: int,
                stage: Stage = stage,
                command: Path = command,
                made: list[Terminal] = made,
            ) -> Terminal:
                made.append(Terminal(stage, columns, PATH=f"{command}:{stage.environ['PATH']}"))
                made[-1].shows("ready>")
                return made[-1]

            try:
                scene(stage, open_terminal)
            finally:
                for each in made:
                    each.tmux("kill-server")
                stage.close()
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
