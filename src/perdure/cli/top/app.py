"""The board of `perdure top`: a list of runs with headings, a panel for the chosen run, and the
keys. A thread reads the store once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from perdure.cli.top.screens import (
    Act,
    Answer,
    HelpScreen,
    LogScreen,
    Question,
    RequestScreen,
    while_there,
)
from perdure.cli.top.view import View, ViewStore, heading, load_view, peek, run_line
from perdure.engine import service
from perdure.errors import PerdureError
from perdure.host.process import Probe
from perdure.model import TaskRun
from perdure.model.events import Record
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.rules.requests import expired
from perdure.rules.text import clean

LOOK_S = 1.0
REST = 4
"""Minimum pause between two reads of the store, as a multiple of the duration of the last read. The
pause limits the load, because searching many runs is slow."""
PEEKED = 400
"""Maximum number of a run's newest records that are read for its panel."""
ON_BOARD = frozenset(
    {"answer", "peek", "retry", "stop", "verb", "filter", "help", "down", "up", "clear"}
)
ASKED = {"update": "New instructions", "fork": "What the fork is to do", "run": "What to do"}
"""Verbs that need a text from the user, each with the question for it. After such a verb, the run
continues in the background."""
CONFIRMED = {"apply": "Copy its changes into this checkout? (y, or Enter for no): "}
"""Verbs that change the user's own files. Each has a question that the user must confirm first."""
AnswerRequest = Callable[[str, int, AnswerKind, str], str]
"""A function that answers a request, given the run's id, the number of the request, the answer and
the person's words. It returns a sentence about the result, and may raise PerdureError."""
EMPTY = 'no runs yet; start with: perdure run "Fix the failing test"'


class RunList(OptionList):
    """The list of runs. Its binding makes the footer show Enter, like the other keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select", "log")]


class Board(App[None]):
    """The application of `perdure top`."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "perdure"
    CSS = """
    #runs, #panel, #head { text-wrap: nowrap; text-overflow: ellipsis; }
    #runs { height: 1fr; border: none; padding: 0; background: $background; }
    #panel {
        height: auto; max-height: 50%; border-top: solid $primary; padding: 0 1; display: none;
    }
    #said { display: none; height: auto; max-height: 4; padding: 0 1; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    #head { height: 1; padding: 0 1; text-style: reverse; }
    #runs > .option-list--option-highlighted, #runs:focus > .option-list--option-highlighted {
        color: ansi_bright_white; background: ansi_blue; text-style: bold;
    }
    #runs > .option-list--option-disabled { color: $foreground; }
    LogScreen #head { dock: top; }
    #request { height: 1fr; border: round $primary; padding: 0 1; }
    #note, #prompt { height: auto; padding: 0 1; }
    #typed { height: 1; border: none; padding: 0 1; }
    .box {
        width: auto; max-width: 90%; height: auto; padding: 1 2; border: round $primary;
        background: $surface;
    }
    HelpScreen, Question { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "peek", "peek"),
        Binding("i", "answer", "answer"),
        Binding("r", "retry", "retry"),
        Binding("s", "stop", "stop"),
        Binding("d", "verb('diff')", "diff"),
        Binding("u", "verb('update')", "reply"),
        Binding("n", "verb('run')", "new"),
        Binding("a", "verb('apply')", show=False),
        Binding("f", "verb('fork')", show=False),
        Binding("o", "verb('open')", show=False),
        Binding("c", "verb('cost')", show=False),
        Binding("slash", "filter", "filter"),
        Binding("question_mark", "help", "keys"),
        Binding("q,ctrl+c", "quit", "leave"),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
        Binding("escape", "clear", show=False),
    ]

    def __init__(
        self,
        store: ViewStore,
        probe: Probe,
        retry: Act,
        stop: Act,
        look_s: float = LOOK_S,
        *,
        answer: AnswerRequest,
        verb: Callable[[list[str]], int] = lambda words: 0,
    ) -> None:
        super().__init__()
        self._probe, self._verb, self._answer = probe, verb, answer
        self._store, self._retry, self._stop, self._look_s = store, retry, stop, look_s
        self.view = View()
        self._words = ""
        self._rests_until = 0.0
        self._peeking = False
        self._peeked = ""
        """Id of the run whose records were last requested for the panel."""
        self._records: list[Record] = []

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield RunList(id="runs", markup=False)
        yield Static(id="panel", markup=False)
        yield Static(id="said", markup=False)
        yield Input(id="filter", placeholder="text in name, workdir, scope or instructions")
        yield Footer()

    def on_mount(self) -> None:
        # This theme uses the terminal's own colors, which are legible on light and dark
        # backgrounds.
        self.theme = "ansi-dark"
        self.query_one("#runs").focus()
        self._load()
        self.set_interval(self._look_s, self._reload)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key of the board is enabled. It is disabled while another screen covers
        the board."""
        return action not in ON_BOARD or len(self.screen_stack) == 1

    # --- reading the store ---

    @property
    def chosen(self) -> str:
        """The id of the run under the cursor; empty if there is none."""
        runs = self.query_one("#runs", OptionList)
        if runs.highlighted is None:
            return ""
        return runs.get_option_at_index(runs.highlighted).id or ""

    def _reload(self) -> None:
        if time.monotonic() >= self._rests_until:
            self._load()

    def _load(self) -> None:
        self._peeked = self.chosen if self._peeking else ""
        words, peeked = self._words, self._peeked
        self.run_worker(
            lambda: self._read(words, peeked), thread=True, exclusive=True, group="look"
        )

    def _read(self, words: str, peeked: str) -> None:
        worker, began = get_current_worker(), time.monotonic()
        try:
            view = load_view(self._store, self._probe, words)
            if peeked:
                records = list(self._store.latest(peeked, PEEKED))
            else:
                records = []
            self._rests_until = time.monotonic() + REST * (time.monotonic() - began)
        except PerdureError as error:
            self.call_from_thread(while_there, self._head, clean(str(error)))
            return
        if not worker.is_cancelled:
            self.call_from_thread(while_there, self._apply_view, view, records)

    def _apply_view(self, view: View, records: list[Record]) -> None:
        self.view, self._records = view, records
        self._draw()

    def _draw(self) -> None:
        """Draw the view. The cursor stays on its run, even if the run's row has moved."""
        runs = self.query_one("#runs", OptionList)
        chosen, at = self.chosen, runs.highlighted
        options = []
        for group in self.view.groups:
            if group.many:
                options.append(Option(heading(group), disabled=True))
                options += [Option(run_line(row, self.view), id=row.id) for row in group.rows]
        if not options:
            options = [
                Option(
                    Text(EMPTY if not self._words else "no run has this text", style="dim"),
                    disabled=True,
                )
            ]
        top = runs.scroll_offset.y
        with self.batch_update():
            runs.clear_options()
            runs.add_options(options)
            ids = [option.id for option in options]
            runs.highlighted = _cursor_index(ids, chosen, at or 0)
            runs.scroll_to(y=top, animate=False)
        counts = ", ".join(f"{group.many} {group.name}" for group in self.view.groups)
        self._head(
            f"perdure   {counts}" + (f"   with: {clean(self._words)}" if self._words else "")
        )
        self._draw_panel()

    def _draw_panel(self) -> None:
        panel = self.query_one("#panel", Static)
        row = self.view.row(self.chosen) if self._peeking else None
        panel.display = row is not None
        if row is not None:
            records = [record for record in self._records if record.run == row.id]
            panel.update(peek(row, records, self.view.now))

    def _head(self, text: str) -> None:
        self.query_one("#head", Static).update(Text(text, no_wrap=True, overflow="ellipsis"))

    # --- keys ---

    def action_down(self) -> None:
        self.query_one("#runs", OptionList).action_cursor_down()

    def action_up(self) -> None:
        self.query_one("#runs", OptionList).action_cursor_up()

    def on_option_list_option_highlighted(self) -> None:
        while_there(self._move_panel)

    def _move_panel(self) -> None:
        # Textual also reports the cursor when it is restored after a redraw. Therefore check
        # whether it is now on another run.
        if self._peeking and self.chosen != self._peeked:
            self._draw_panel()
            self._load()

    def on_option_list_option_selected(self) -> None:
        self.action_attach()

    def action_attach(self) -> None:
        if (row := self.view.row(self.chosen)) is not None:
            self.push_screen(LogScreen(self._store, row.id, row.name))

    def action_peek(self) -> None:
        self._peeking = not self._peeking
        self._draw_panel()
        self._load()

    def action_filter(self) -> None:
        line = self.query_one("#filter", Input)
        line.display = True
        line.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = event.value.strip()
        self._load()

    def on_input_submitted(self) -> None:
        self.query_one("#filter").display = bool(self._words)
        self.query_one("#runs").focus()

    def action_clear(self) -> None:
        line = self.query_one("#filter", Input)
        if line.display:
            line.value = ""
            line.display = False
            self.query_one("#runs").focus()
        elif self.query_one("#said").display:
            self._show_message("", False)
        elif self._peeking:
            self.action_peek()

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_retry(self) -> None:
        if self.chosen:
            self._act(self._retry, self.chosen)

    def action_stop(self) -> None:
        row = self.view.row(self.chosen)
        if row is None:
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._act(self._stop, row.id)

        question = (
            f"Stop {clean(row.name)}? The agent is stopped; perdure retry "
            f"{clean(row.name)} continues where it stopped."
        )
        self.push_screen(Question(question), answered)

    def action_answer(self) -> None:
        """Open the oldest open request of the chosen run."""
        if chosen := self.chosen:
            self.run_worker(
                lambda: self._find_request(chosen), thread=True, exclusive=True, group="request"
            )

    def _find_request(self, run_id: str) -> None:
        try:
            run, now = self._store.get(run_id), self._store.now()
            made = [expired(each, now) for each in self._store.requests(run_id)]
            opened = [each for each in made if each.state is RequestState.OPEN]
            if not opened:
                # This raises an error that says what became of the newest request.
                service.only_open(run, made, AnswerKind.DENY)
        except PerdureError as error:
            self.call_from_thread(while_there, self._show_message, _sentence(error), True)
            return
        self.call_from_thread(self._show_request, run, opened)

    def _show_request(self, run: TaskRun, opened: list[AgentRequest]) -> None:
        if len(self.screen_stack) > 1:
            return  # Another key has opened a screen in the meantime.
        request = opened[0]

        def answered(given: Answer | None) -> None:
            if given is not None:
                act = partial(self._give, number=request.number, given=given)
                self._act(act, run.id)

        self.push_screen(RequestScreen(request, run.name, len(opened)), answered)

    def _give(self, run_id: str, number: int, given: Answer) -> str:
        return self._answer(run_id, number, *given)

    def action_verb(self, verb: str) -> None:
        """Run a verb of the command line on the whole terminal, then return to the board."""
        row = self.view.row(self.chosen)
        if row is None and verb not in ("run", "cost"):
            return
        if verb in ("run", "cost") or row is None:
            words = [verb]
        else:
            words = [verb, row.id]
        with self.suspend():
            if verb in CONFIRMED:
                if _typed(CONFIRMED[verb]).lower() in ("y", "yes"):
                    self._verb(words)
            elif verb not in ASKED:
                self._verb(words)
            elif text := _typed(f"{ASKED[verb]} (empty: none): "):
                self._verb([*words, text, "--detach"])
            _typed("\nEnter returns to the board ")
        self._load()

    def _act(self, act: Act, run_id: str) -> None:
        """Call `act` in a thread, because stopping an agent takes a while. Then show its result."""

        def do() -> None:
            try:
                said, bad = act(run_id), False
            except PerdureError as error:
                said, bad = _sentence(error), True
            self.call_from_thread(while_there, self._show_message, clean(said), bad)

        self.run_worker(do, thread=True, group="act")

    def _show_message(self, said: str, bad: bool) -> None:
        # The message is for the board, also if another screen covers it by now.
        line = self.screen_stack[0].query_one("#said", Static)
        line.display = bool(said)
        line.update(Text(said, style="bold red" if bad else "bold"))
        self._load()


def _sentence(error: PerdureError) -> str:
    """Return the error and its hint as one cleaned text."""
    if error.hint:
        return clean(f"{str(error).rstrip('.')}; {error.hint}")
    return clean(str(error))


def _typed(question: str) -> str:
    """Ask for a line and return it. Return an empty string after Ctrl-C or Ctrl-D."""
    try:
        return input(question).strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _cursor_index(ids: list[str | None], chosen: str, at: int) -> int | None:
    """Return the new index of the cursor: that of the run `chosen`. If that run is gone, return the
    index of the nearest run above the old index `at`, or else of the first run. Return None if
    there is no run."""
    if chosen in ids:
        return ids.index(chosen)
    runs = [index for index, id_ in enumerate(ids) if id_]
    above = [index for index in runs if index <= at]
    if above:
        return above[-1]
    if runs:
        return runs[0]
    return None
