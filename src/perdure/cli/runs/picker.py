"""Lets a person choose a conversation on a terminal, from a list with search and preview. It has
the keys of the agents' own pickers.

`Picker` holds the state and handles each key. `screen` renders it for a given number of columns and
lines. `pick` connects both to the terminal. Without color (NO_COLOR, a dumb terminal), the chosen
line is shown only by a mark.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from perdure.cli.runs import keys
from perdure.cli.text import age, at_home, clean, dollars, one_line, widths_of
from perdure.errors import PerdureError
from perdure.model import TaskSpec
from perdure.rules.run_titles import worker_of

if TYPE_CHECKING:
    from perdure.engine.conversations import ConversationEntry, ConversationIndex
    from perdure.protocols import SpokenMessage
    from perdure.workspace import Workspaces

LOADED = 200
WIDE = 120
FRAME = 6
"""Number of lines of the screen that are not part of the list: title, search, heading, two lines of
details, keys."""


class Picker(Struct, kw_only=True):
    """The state of the picker: the conversations, the search, the preview, and the choice."""

    load: Callable[[bool], Sequence[ConversationEntry]]
    """A function that returns the conversations: with False those of this directory, with True
    those of all directories."""
    spoken: Callable[[ConversationEntry], Sequence[SpokenMessage]]
    workdir: Callable[[ConversationEntry], str]
    place: str
    everywhere: bool = False
    entries: Sequence[ConversationEntry] = ()
    search: str = ""
    searching: bool = False
    preview: bool = False
    at: int = 0
    back: int = 0
    """Number of lines by which the preview is scrolled back from its end."""
    over: bool = False
    chosen: ConversationEntry | None = None
    _said: dict[str, Sequence[SpokenMessage]] = field(default_factory=dict)
    _states: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entries = self.load(self.everywhere)

    @property
    def shown(self) -> list[ConversationEntry]:
        """The conversations that contain every word of the search."""
        words = self.search.lower().split()
        return [entry for entry in self.entries if all(word in _haystack(entry) for word in words)]

    @property
    def current(self) -> ConversationEntry | None:
        shown = self.shown
        if shown:
            return shown[min(self.at, len(shown) - 1)]
        return None

    def press(self, key: str) -> None:
        """Change the state according to one key."""
        if key == keys.CTRL_C:
            self.over = True
        elif key == keys.CTRL_A:
            self.everywhere, current = not self.everywhere, self.current
            self.entries = self.load(self.everywhere)
            ids = [entry.id for entry in self.shown]
            if current is not None and current.id in ids:
                self.at = ids.index(current.id)
            else:
                self.at = 0
        elif key in (keys.UP, keys.DOWN, keys.PAGE_UP, keys.PAGE_DOWN, keys.HOME, keys.END):
            self._move(key)
        elif self.searching:
            self._type(key)
        elif key == keys.ENTER:
            self.chosen, self.over = self.current, self.current is not None
        elif key == keys.SPACE:
            self.preview, self.back = not self.preview, 0
        elif key == "/":
            self.searching = True
        elif key == keys.ESCAPE and self.search:
            self.search = ""
        elif key in (keys.ESCAPE, "q"):
            self.over = True
        elif key in ("j", "k"):
            self._move(keys.DOWN if key == "j" else keys.UP)

    def _move(self, key: str) -> None:
        if self.preview and key in (keys.PAGE_UP, keys.PAGE_DOWN):
            self.back = max(0, self.back + (5 if key == keys.PAGE_UP else -5))
            return
        last = len(self.shown) - 1
        steps = {
            keys.UP: -1,
            keys.DOWN: 1,
            keys.PAGE_UP: -10,
            keys.PAGE_DOWN: 10,
            keys.HOME: -last - 1,
            keys.END: last + 1,
        }
        self.at, self.back = max(0, min(last, min(self.at, last) + steps[key])), 0

    def _type(self, key: str) -> None:
        if key == keys.ENTER:
            self.searching = False
        elif key == keys.ESCAPE:
            self.searching, self.search = False, ""
        elif key == keys.BACKSPACE:
            self.search = self.search[:-1]
        elif key == keys.CTRL_U:
            self.search = ""
        elif len(key) == 1:
            self.search += key
        self.at = 0

    def said(self, entry: ConversationEntry) -> Sequence[SpokenMessage]:
        """Return the last messages of a conversation. The result is cached, so they are read only
        once."""
        if entry.id not in self._said:
            self._said[entry.id] = self.spoken(entry)
        return self._said[entry.id]

    def state(self, entry: ConversationEntry) -> str:
        """Return the state of a conversation's workdir as text. The result is cached, so the
        workdir is examined only once."""
        if entry.id not in self._states:
            self._states[entry.id] = self.workdir(entry)
        return self._states[entry.id]


def _haystack(entry: ConversationEntry) -> str:
    run, who = entry.run.name if entry.run else "", worker_of(entry.role, entry.agent)
    return f"{entry.id} {who} {run} {entry.cwd} {entry.title} {entry.first}".lower()


# --- rendering ---


def screen(picker: Picker, width: int, height: int, now: int, plain: bool) -> list[str]:
    """Return the lines of the screen, for `width` columns and `height` lines. `plain`: without
    color."""
    shown, current = picker.shown, picker.current
    rows = max(1, height - FRAME)
    if picker.preview and current is not None and rows >= 6:
        spoken = rows // 2
    else:
        spoken = 0
    listed = rows - spoken
    first = max(0, min(picker.at - listed // 2, len(shown) - listed))
    head, *rowed = _rows(shown[first : first + listed], width, now)
    where = "all directories" if picker.everywhere else picker.place
    if picker.search:
        count = f"{len(shown)} of {len(picker.entries)}"
    else:
        count = str(len(shown))
    lines = [
        _fit(f"Resume a conversation of {where} ({count})", width),
        _fit(_search(picker), width),
        _fit(head, width),
    ]
    lines[0], lines[2] = _bold(lines[0], plain), _bold(lines[2], plain)
    for entry, text in zip(shown[first : first + listed], rowed, strict=True):
        chosen = entry is current
        row = _fit(("> " if chosen else "  ") + text[2:], width)
        lines.append(_reversed(row, plain) if chosen else row)
    if not shown:
        lines.append(
            _fit(
                "  nothing here; Ctrl+A looks in all directories"
                if not picker.search
                else "  no conversation has this text",
                width,
            )
        )
    lines += [""] * (3 + listed - len(lines))
    if spoken and current is not None:
        lines += _preview(picker, current, width, spoken)
    details = _details(picker, current) if current is not None else ("", "")
    lines += [_fit(line, width) for line in details]
    return [*lines, _fit(_help(picker, width), width)][:height]


def _search(picker: Picker) -> str:
    if picker.searching:
        return f"/{picker.search}_"
    if picker.search:
        return f"/{picker.search}"
    return ""


def _rows(entries: Sequence[ConversationEntry], width: int, now: int) -> list[str]:
    """Return the heading, and one line for each conversation. A column is as wide as its contents,
    up to a fixed limit."""
    wide = width >= WIDE
    table = [("AGE", "AGENT", "TURNS", "COST", "RUN", "DIRECTORY", "ABOUT")]
    for entry in entries:
        if entry.cost_usd:
            cost = dollars(entry.cost_usd, estimated=entry.cost_estimated)
        else:
            cost = ""
        run = clean(entry.run.name if entry.run else entry.state)
        cells = (
            age(entry.updated, now),
            worker_of(entry.role, entry.agent),
            str(entry.turns or "?"),
            cost,
            run,
            at_home(entry.cwd),
            entry.title,
        )
        table.append(cells)
    shares = (4, 18, 5, 8, 24 if wide else 14, 36 if wide else 0)
    sizes = list(map(min, shares, widths_of(table)))
    lines = []
    for row in table:
        line = "  "
        for cell, size in zip(row, sizes, strict=False):
            if size:
                line += f"{_fit(cell, size)}  "
        lines.append(f"{line}{row[-1]}")
    return lines


def _details(picker: Picker, entry: ConversationEntry) -> tuple[str, str]:
    if entry.run:
        known = f"{entry.run.state}, run {entry.run.name}"
    else:
        known = "started manually"
    gone = "" if entry.on_disk else ", its transcript is gone"
    return f"{clean(entry.id)}  {known}{gone}", f"{picker.state(entry)}  {at_home(entry.cwd)}"


def _preview(picker: Picker, entry: ConversationEntry, width: int, height: int) -> list[str]:
    """Return the last lines of the conversation, below a horizontal rule."""
    lines: list[str] = []
    for said in picker.said(entry):
        lines += _wrapped("agent:  " if said.by_agent else "person: ", clean(said.text), width)
    end = max(min(height - 1, len(lines)), len(lines) - picker.back)
    kept = lines[max(0, end - height + 1) : end] or ["nothing to show"]
    rule = "-" * 2 + " what was said last " + "-" * max(0, width - 22)
    return [_fit(line, width) for line in [rule, *kept, *[""] * (height - 1 - len(kept))]]


def _wrapped(head: str, text: str, width: int) -> list[str]:
    """Return the text as lines of at most `width` columns. The first line begins with `head`. Lines
    are broken at spaces if the text is ASCII, else at any character."""
    import textwrap

    from rich.cells import chop_cells

    room = max(10, width - len(head))
    pieces: list[str] = []
    for line in text.strip().replace("\t", "    ").split("\n"):
        pieces += (textwrap.wrap(line, room) if line.isascii() else chop_cells(line, room)) or [""]
    indent = " " * len(head)
    first, *more = pieces
    return [f"{head}{first}", *(f"{indent}{piece}" for piece in more)]


def _help(picker: Picker, width: int) -> str:
    if picker.searching:
        return "type to search   Enter done   Esc clear"
    if width < WIDE:
        scope = "here" if picker.everywhere else "all"
        return f"Up/Down  Enter choose  Space preview  / search  Ctrl+A {scope}  Esc leave"
    where = "this directory" if picker.everywhere else "all directories"
    scroll = "   PgUp/PgDn read back" if picker.preview else ""
    return (
        f"Up/Down move   Enter choose   Space preview{scroll}   / search   Ctrl+A {where}   Esc "
        "leave"
    )


def _fit(text: str, width: int) -> str:
    """Return the text in exactly `width` columns. If it was cut, it ends with an ellipsis."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"


def _bold(line: str, plain: bool) -> str:
    if plain:
        return line
    return f"\x1b[1m{line}\x1b[0m"


def _reversed(line: str, plain: bool) -> str:
    if plain:
        return line
    return f"\x1b[7m{line}\x1b[0m"


# --- on the terminal ---


def pick(
    index: ConversationIndex, here: Path, workspaces: Workspaces, everywhere: bool = False
) -> ConversationEntry | None:
    """Let a person choose a conversation, and return it. Return None if none is chosen."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "") in ("", "dumb")
    picker = Picker(
        load=lambda all_of_them: index.entries(LOADED, None if all_of_them else here),
        spoken=index.spoken,
        workdir=lambda entry: describe(workspaces, entry),
        place=at_home(str(here)),
        everywhere=everywhere,
    )
    with keys.FullScreen() as terminal:
        while not picker.over:
            terminal.draw(screen(picker, *terminal.size, index.store.now(), plain))
            picker.press(terminal.key())
    return picker.chosen


def describe(workspaces: Workspaces, entry: ConversationEntry) -> str:
    """Describe in a few words the state of the directory where the conversation would continue."""
    if not entry.cwd or not Path(entry.cwd).is_dir():
        return "the directory is gone"
    try:
        place = entry.run.workspace if entry.run is not None else None
        found = workspaces.state(
            place or workspaces.plan(TaskSpec(prompt="", here=entry.cwd), "resume", Path(entry.cwd))
        )
    except PerdureError as error:
        return one_line(str(error), 80)
    branch = f"branch {found.branch}, " if found.branch else ""
    if found.in_progress:
        open_ended = f", {found.in_progress} in progress"
    else:
        open_ended = ""
    if not found.head:
        return f"no repository, {found.untracked} file(s)"
    if not found.changed and not found.untracked:
        return clean(f"{branch}nothing uncommitted{open_ended}")
    return clean(f"{branch}{found.changed} changed, {found.untracked} untracked{open_ended}")
