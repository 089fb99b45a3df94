"""Shows an agent's requests on the terminal where its run is followed, and reads the answers.

Called by `run`, `retry`, `update`, `approve` and `attach` when the run waits for a person. Without
a terminal these verbs end instead. A request that is not answered here stays in the database, and
can be answered later.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from perdure.cli import request_text
from perdure.cli.style import paint
from perdure.errors import Conflict, UsageError
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.rules.approvals import not_whole
from perdure.rules.requests import questions

if TYPE_CHECKING:
    from perdure.engine.attempt import Engine

NARROWEST = 20


def can_ask() -> bool:
    """Return whether a person can answer on the terminal of this command. A command in the
    background would be stopped when it reads from the terminal. In CI nobody can answer, even if
    there is a terminal."""
    if os.environ.get("CI") or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False


def answer_here(engine: Engine, run_id: str) -> bool:
    """Ask for the answers to all open requests of a run, and store them. Return whether all
    requests are now answered. After Ctrl-C or the end of the input, the remaining requests stay
    open."""
    from perdure.engine import service

    run = engine.store.get(run_id)
    opened = _open(engine.store.requests(run.id))
    if not opened:
        return False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for each in opened:
            _say(shown_for_answer(each, f"request {each.number} of {run.name}"))
            answer, words = _read_answer(each)
            try:
                service.answer(engine, run.id, each.number, answer, words)
            except (Conflict, UsageError) as error:
                # Another person has answered in the meantime, on another terminal or page.
                _say([f"{error}"])
    except (KeyboardInterrupt, EOFError):
        if questions(opened[0]):
            verb = 'answer NAME "..."'
        else:
            verb = "approve NAME, or deny NAME"
        _say(["", f"left open; answer later: perdure {verb.replace('NAME', run.name)}"])
    finally:
        signal.signal(signal.SIGINT, before)
    return not _open(engine.store.requests(run.id))


def _open(requests: Iterable[AgentRequest]) -> list[AgentRequest]:
    return [each for each in requests if each.state is RequestState.OPEN]


def shown_for_answer(request: AgentRequest, title: str) -> list[str]:
    """Return the lines that show the complete request. Each line of it begins with a bar, so that
    no text of the agent looks like a line of perdure. Hidden characters are made visible."""
    lines = request_text.lines_of(request)
    width = max(NARROWEST, shutil.get_terminal_size().columns - 4)
    shown = []
    for line in lines:
        shown += [f"  | {piece}" for piece in _pieces(line, width)]
    if note := not_whole(request):
        shown.append(f"  ... {note}")
    return ["", paint(title, "strong", sys.stderr), *shown]


def _pieces(line: str, width: int) -> list[str]:
    """Return a line as pieces of at most `width` columns. If the line is not ASCII, each of its
    characters counts as two columns."""
    most = width if line.isascii() else width // 2
    return [line[at : at + most] for at in range(0, len(line), most)] or [""]


def _read_answer(request: AgentRequest) -> tuple[AnswerKind, str]:
    """Ask until the person gives an answer, and return it. Raises KeyboardInterrupt or EOFError if
    the person gives up."""
    if request.kind is RequestKind.QUESTION:
        texts = map(_text, request_text.questions_of(request))
        return AnswerKind.TEXT, "\n".join(texts)
    prompt = request_text.call_prompt(request)
    verdict = None
    while verdict is None:
        verdict = request_text.verdict_of(request, _line(prompt))
    return verdict


def _text(question: Any) -> str:
    """Ask until the person gives an answer to one question, and return it."""
    words = ""
    while not words:
        words = request_text.words_of(question, _line(request_text.QUESTION_PROMPT))
    return words


def _line(prompt: str) -> str:
    """Print the prompt, and return the line that is typed after it. Earlier input is dropped,
    because it was not meant as an answer."""
    import termios

    sys.stderr.write(prompt)
    sys.stderr.flush()
    try:
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
    except termios.error:
        raise EOFError from None  # The terminal was closed.
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _say(lines: Sequence[str]) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)
