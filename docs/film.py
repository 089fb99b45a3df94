"""An animated picture for the front page: a real agent in a real terminal is killed in the middle
of a command, and continued. `make screens` makes it again, as docs/images/continue.svg.

Only the model is scripted, and only the time for which each picture is shown is chosen. The film is
one SVG that is animated by CSS. For a reader who wants no motion, only its last picture is shown.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.screens import IMAGES, SCRIPT, WITHOUT_FONTS
from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal

COLUMNS, ROWS = 100, 22
SHORTEST_S, LONGEST_S, LAST_S = 0.7, 2.4, 5.0
"""Shortest and longest time for which a picture is shown, and the time of the last picture, in
seconds."""
EVERY_S = 0.15
"""Time between two captures of the terminal, in seconds."""


MOVING = re.compile("[\u2800-\u28ff]|≈\\$.* · context ")


@dataclass
class Picture:
    """The screen of the terminal, and its title."""

    pane: str
    title: str
    shown_s: float = SHORTEST_S


class Camera:
    """Captures a terminal in a separate thread, and keeps each picture that differs from the
    previous one."""

    def __init__(self, terminal: Terminal, stage: Stage) -> None:
        self.terminal, self.stage, self.title = terminal, stage, ""
        self.pictures: list[Picture] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def _go(self) -> None:
        while not self._over.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        """Capture the terminal, and keep the picture if it differs from the previous one."""
        pane = self.terminal.tmux("capture-pane", "-p", "-e").rstrip("\n ")
        pane = pane.replace(str(self.stage.home), "/home/you")
        # The status line changes all the time while the agent works, so it is left out of the
        # picture.
        still = "\n".join(line for line in pane.split("\n") if not MOVING.search(line))
        if self.pictures and (self.pictures[-1].pane, self.pictures[-1].title) == (
            still,
            self.title,
        ):
            last = self.pictures[-1]
            last.shown_s = min(LONGEST_S, last.shown_s + EVERY_S)
        else:
            self.pictures.append(Picture(still, self.title))


def drawn(picture: Picture, number: int) -> tuple[str, str]:
    """Return the picture as an SVG group, and the opening tag of a whole SVG of its size."""
    lines = (picture.pane.split("\n") + [""] * ROWS)[:ROWS]
    console = Console(
        record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=False, overflow="crop", no_wrap=True)
    svg = console.export_svg(
        title=picture.title, code_format=WITHOUT_FONTS, unique_id=f"film{number}"
    ).replace("Fira Code", "monospace")
    head, _, rest = svg.partition(">")
    return f'<g class="picture p{number}">{rest.rpartition("</svg>")[0]}</g>', f"{head}>"


def film(pictures: Sequence[Picture]) -> str:
    """Return the pictures as one SVG, which shows them one after the other."""
    pictures[-1].shown_s = LAST_S
    total = sum(picture.shown_s for picture in pictures)
    rules, groups, head, at = [], [], "", 0.0
    for number, picture in enumerate(pictures):
        group, head = drawn(picture, number)
        groups.append(group)
        first, last = 100 * at / total, 100 * (at + picture.shown_s) / total
        hidden = "0% { visibility: hidden } " if number else ""
        rules.append(
            f"@keyframes p{number} {{ {hidden}{first:.3f}% {{ visibility: visible }} "
            f"{last:.3f}% {{ visibility: {'hidden' if last < 99.999 else 'visible'} }} }}\n"
            f".p{number} {{ animation: p{number} {total:.1f}s step-end infinite }}"
        )
        at += picture.shown_s
    still = (
        "@media (prefers-reduced-motion: reduce) { .picture { animation: none } "
        f".p{len(pictures) - 1} {{ visibility: visible }} }}"
    )
    style = "\n".join([".picture { visibility: hidden }", *rules, still])
    return f"{head}\n<style>\n{style}\n</style>\n" + "\n".join(groups) + "\n</svg>\n"


def main() -> None:
    """Play and record the story, and write the film."""
    directory = Path(tempfile.mkdtemp(prefix="pf"))
    with Rehearsal(SCRIPT) as rehearsal:
        stage = Stage(directory, "claude", rehearsal)
        terminal = Terminal(stage, COLUMNS)
        camera = Camera(terminal, stage)
        try:
            camera.title = "give a task to an agent"
            terminal.type("clear", "Enter")
            camera.start()
            terminal.type(
                "perdure run --name rounding --permissions full "
                '"Prices are rounded wrongly in cart.py."',
                "Enter",
            )
            workdirs = stage.home / ".local/share/perdure/.perdure/work"
            stage.until(lambda: list(workdirs.glob("*/at-work.txt")), "the agent is in its tool")
            terminal.shows("Bash")
            for path in workdirs.iterdir():
                (path / "go.txt").touch()
            camera.title = "kill -9: the agent dies in the middle of its command"
            os.kill(stage.agent_pid(), signal.SIGKILL)
            terminal.shows("SIGKILL")
            camera.title = "perdure continues the same conversation"
            terminal.shows("look at it")
            terminal.shows("ready>")
            camera.title = "and proves that it went on: receipt native"
        finally:
            camera.stop()
            terminal.tmux("kill-server")
            stage.close()
    shutil.rmtree(directory, ignore_errors=True)
    (IMAGES / "continue.svg").write_text(film(camera.pictures), encoding="utf-8")
    print(f"docs/images/continue.svg: {len(camera.pictures)} pictures")


if __name__ == "__main__":
    main()
