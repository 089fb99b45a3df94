"""Lets a person choose one of several runs on a terminal, for a verb without NAME.

Used by `newest` if a verb that changes something could mean several runs. The list is drawn on
standard error, so that standard output has only the verb's own output.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from msgspec import Struct

from perdure.cli.runs import keys
from perdure.cli.text import age, cut, one_line
from perdure.model import TaskRun

FRAME = 3
"""Number of lines of the screen that are not part of the list: title, search, keys."""
HELP = "Up/Down move   Enter choose   type to search   Esc leave"


class RunPicker(Struct, kw_only=True):
    """The state of the list: the runs, the search, and the choice."""

    verb: str
    runs: Sequence[TaskRun]
    search: str = ""
    at: int = 0
    over: bool = False
    chosen: TaskRun | None = None

    @property
    def shown(self) -> list[TaskRun]:
        """The runs that contain every word of the search."""
        words = self.search.lower().split()
        return [run for run in self.runs if all(word in _searched(run) for word in words)]

    def press(self, key: str) -> None:
        """Change the state according to one key."""
        shown = self.shown
        if key in (keys.CTRL_C, keys.ESCAPE):
            self.over = True
        elif key == keys.ENTER and shown:
            self.chosen, self.over = shown[min(self.at, len(shown) - 1)], True
        elif key in (keys.UP, keys.DOWN):
            step = -1 if key == keys.UP else 1
            self.at = max(0, min(len(shown) - 1, self.at + step))
        elif key in (keys.BACKSPACE, keys.CTRL_U):
            self.search, self.at = self.search[:-1] if key == keys.BACKSPACE else "", 0
        elif len(key) == 1:
            self.search, self.at = self.search + key, 0


def _searched(run: TaskRun) -> str:
    return f"{run.name} {run.state} {run.spec.agent} {run.spec.prompt}".lower()


def screen(picker: RunPicker, width: int, height: int, now: int, *, plain: bool) -> list[str]:
    """Return the lines of the screen, for `width` columns and `height` lines. `plain`: without
    color."""
    shown = picker.shown
    at = min(picker.at, len(shown) - 1)
    rows = max(1, height - FRAME)
    first = max(0, min(at - rows // 2, len(shown) - rows))
    title = f"Which run to {picker.verb}? ({len(shown)} of {len(picker.runs)})"
    lines = [cut(title, width), cut(f"/{picker.search}", width)]
    longest = max((len(run.name) for run in shown), default=0)
    for number, run in enumerate(shown[first : first + rows], first):
        mark = ">" if number == at else " "
        about = one_line(run.spec.prompt, 200)
        told = f"{run.state:9}  {run.spec.agent}  {age(run.updated, now)}  {about}"
        line = cut(f"{mark} {one_line(run.name, 64):{longest}}  {told}", width)
        is_reversed = number == at and not plain
        lines.append(f"\x1b[7m{line}\x1b[0m" if is_reversed else line)
    return [*lines, cut(HELP, width)][:height]


def pick_run(verb: str, runs: Sequence[TaskRun], now: int) -> TaskRun | None:
    """Let a person choose a run, and return it. Return None if none is chosen."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "") in ("", "dumb")
    picker = RunPicker(verb=verb, runs=runs)
    with keys.FullScreen() as terminal:
        while not picker.over:
            terminal.draw(screen(picker, *terminal.size, now, plain=plain))
            picker.press(terminal.key())
    return picker.chosen
