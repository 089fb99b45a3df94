"""The screens that cover the board: a run's log, the keys, a question before something is stopped,
and an agent's request, whose answer is typed there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Input, RichLog, Static
from textual.worker import get_current_worker

from perdure.cli import request_text
from perdure.cli.text import widths_of
from perdure.cli.top.view import log_line
from perdure.errors import PerdureError
from perdure.model import TaskRun
from perdure.model.events import Record
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.protocols import RunStore
from perdure.rules.approvals import not_whole
from perdure.rules.lifecycle import FINAL
from perdure.rules.text import clean, clock, one_line

LOOK_S = 0.5
BEGIN = 2000
"""Maximum number of a run's newest records that are shown when the log opens."""
KEPT = 10_000
"""Maximum number of lines of a log that the screen keeps."""

KEYS = (
    ("up, down, j, k", "choose a run"),
    ("Space", "peek: its attempts, receipts and last words, below"),
    ("Enter", "attach to its log; Escape or Left returns, and the run continues"),
    ("i", "answer its agent: allow or refuse the call that it asks for, or answer its question"),
    ("r", "retry: continue where it stopped"),
    ("s", "stop: asks first; perdure retry continues later"),
    ("d, a", "its changes; copy them into this checkout, after a question"),
    ("u", "reply: new instructions, in the same conversation"),
    ("n, f", "a new run here; a fork of this one"),
    ("o", "open its conversation in the agent's own program"),
    ("c", "what the runs have cost"),
    ("/", "only runs with this text in name, workdir, scope or instructions"),
    ("Escape", "no filter, no panel"),
    ("?", "these keys"),
    ("q", "quit; nothing is stopped"),
)


def while_there(do: Callable[..., None], *arguments: Any) -> None:
    """Call `do` with the result of a thread. Do nothing if the widgets that `do` uses were removed
    in the meantime."""
    with suppress(NoMatches):
        do(*arguments)


class LogScreen(Screen[None]):
    """Shows a run's log and follows it, as `perdure attach` does."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,left,q", "app.pop_screen", "back"),
        Binding("end,G", "to_end", "to the end"),
        Binding("home,g", "to_begin", "to the beginning"),
    ]

    def __init__(self, store: RunStore, run_id: str, name: str) -> None:
        super().__init__()
        self._store, self._run_id, self._run_name = store, run_id, name
        self._seen = 0

    def compose(self) -> ComposeResult:
        yield Static(Text(clean(self._run_name)), id="head")
        yield RichLog(max_lines=KEPT, wrap=True, markup=False, highlight=False, auto_scroll=True)
        yield Footer()

    def on_mount(self) -> None:
        self._load()
        self.set_interval(LOOK_S, self._load)
        self.query_one(RichLog).focus()

    def _load(self) -> None:
        self.run_worker(self._read, thread=True, exclusive=True)

    def _read(self) -> None:
        worker = get_current_worker()
        try:
            if self._seen:
                records = self._store.history(self._run_id, after=self._seen)
            else:
                records = self._store.latest(self._run_id, BEGIN)
            run = self._store.get(self._run_id)
        except PerdureError as error:
            self.app.call_from_thread(while_there, self._head, clean(str(error)))
            return
        if not worker.is_cancelled:
            self.app.call_from_thread(while_there, self._show, records, run)

    def _show(self, records: Sequence[Record], run: TaskRun) -> None:
        log = self.query_one(RichLog)
        at_end = log.is_vertical_scroll_end
        for record in records:
            # Two reads may return the same record; show it only once.
            if record.seq > self._seen:
                self._seen = record.seq
                if (line := log_line(record)) is not None:
                    log.write(line, scroll_end=at_end)
        if run.reason and run.state in FINAL:
            over = f": {one_line(run.reason, 160)}"
        else:
            over = ""
        self._head(f"{run.name}  {run.state}, attempt {run.attempt}{over}")

    def _head(self, text: str) -> None:
        self.query_one("#head", Static).update(Text(text))

    def action_to_end(self) -> None:
        self.query_one(RichLog).scroll_end(animate=False)

    def action_to_begin(self) -> None:
        self.query_one(RichLog).scroll_home(animate=False)


class HelpScreen(ModalScreen[None]):
    """Shows the keys of the board."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter,space", "dismiss", "back")
    ]

    def compose(self) -> ComposeResult:
        width, _ = widths_of(KEYS)
        lines = [Text.assemble((f"{keys:{width}}  ", "bold"), what) for keys, what in KEYS]
        yield Static(Text("\n").join(lines), classes="box")


class Question(ModalScreen[bool]):
    """Asks a question before an action. Only `y` confirms."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q,enter", "answer(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        yield Static(
            Text.assemble(self._question, "\n\n", ("y", "bold"), " yes   ", ("n", "bold"), " no"),
            classes="box",
        )

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


Act = Callable[[str], str]
"""A function that acts on the run with the given id, and returns a sentence about the result. It
may raise PerdureError."""

Answer = tuple[AnswerKind, str]
"""The answer to a request, and the person's words."""


class RequestScreen(Screen[Answer | None]):
    """Shows one request, and returns the answer; None if the request is left open.

    The text of the agent is inside a frame, so that it cannot imitate a line of perdure. An answer
    needs Enter, so that a key that was meant for the board answers nothing.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave it open"),
        Binding("up", "scroll(-1)", show=False),
        Binding("down", "scroll(1)", show=False),
        Binding("pageup", "page(-1)", "up"),
        Binding("pagedown", "page(1)", "down"),
    ]

    def __init__(self, request: AgentRequest, name: str, many: int) -> None:
        super().__init__()
        self._request, self._run_name, self._many = request, name, many
        self._texts: list[str] = []
        """The answers to the questions so far."""

    def compose(self) -> ComposeResult:
        request = self._request
        title = f"{clean(self._run_name)}  request {request.number}"
        if self._many > 1:
            title = f"{title}, the first of {self._many} open ones"
        yield Static(Text(f"{title}, until {clock(request.expires)}"), id="head")
        with VerticalScroll(id="request", can_focus=False):
            yield Static(Text("\n".join(request_text.lines_of(request))))
        note = not_whole(request)
        if note:
            yield Static(Text(f"... {note}", style="bold yellow"), id="note")
        yield Static(id="prompt")
        yield Input(id="typed")
        yield Footer()

    def on_mount(self) -> None:
        self._show_prompt()
        self.query_one(Input).focus()

    @property
    def _box(self) -> VerticalScroll:
        return self.query_one(VerticalScroll)

    def _show_prompt(self, before: str = "") -> None:
        """Show what the person is asked to type, after the sentence `before`."""
        prompt = request_text.call_prompt(self._request)
        if self._request.kind is RequestKind.QUESTION:
            prompt = request_text.QUESTION_PROMPT
            count = len(request_text.questions_of(self._request))
            if count > 1:
                before = f"Question {len(self._texts) + 1} of {count}. "
        self.query_one("#prompt", Static).update(Text(f"{before}{prompt}", style="bold"))

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()  # The board would take the text for its filter.

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        said = event.value.strip()
        event.input.value = ""
        if self._request.kind is RequestKind.QUESTION:
            self._take_words(said)
            return
        verdict = request_text.verdict_of(self._request, said)
        if verdict is None:
            return
        if verdict[0] is AnswerKind.ALLOW and not self._box.is_vertical_scroll_end:
            # What is below the screen is not seen yet.
            self._show_prompt("Read the call to its end first (Page Down). ")
            return
        self.dismiss(verdict)

    def _take_words(self, said: str) -> None:
        """Take the answer to the next question. Close the screen after the last one."""
        asked = request_text.questions_of(self._request)
        words = request_text.words_of(asked[len(self._texts)], said)
        if words:
            self._texts.append(words)
        if len(self._texts) == len(asked):
            self.dismiss((AnswerKind.TEXT, "\n".join(self._texts)))
        else:
            self._show_prompt()

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_scroll(self, lines: int) -> None:
        self._box.scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        self._box.scroll_relative(y=pages * self._box.size.height, animate=False)
