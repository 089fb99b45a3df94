"""Shows an agent's request on the whole screen, and reads the answer to it."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from perdure.cli import request_text
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.rules.approvals import not_whole
from perdure.rules.text import clean, clock

Answer = tuple[AnswerKind, str]
"""The answer to a request, and the person's words."""


class RequestScreen(Screen[Answer | None]):
    """Shows one request, and returns the answer; None if the request is left open.

    The text of the agent is inside of a frame, so that it cannot imitate a line of perdure. An
    answer needs Enter, so that no key that was meant for the board gives one.
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
