"""Finds what a turn left open although the agent reported success: denied tool calls, unanswered
questions, incomplete answers. Pure.

`attempt` collects the facts from the agent's events, and calls `judge` before the outcome is
stored. The agent's prose is never evidence: only calls, results and stop reasons decide.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import chain

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.model import OnDenied, Outcome, OutcomeKind
from perdure.model.events import (
    AgentEvent,
    LastWordGiven,
    QuestionAsked,
    ReplyCut,
    Said,
    ToolDenied,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
)

MOST = 100
"""Maximum number of different denied calls that are stored; further ones are only counted."""
NAMED = 3
"""Maximum number of denied calls that the text of an outcome names."""
WORDS = 400
"""Maximum length of a question or refusal in the text of an outcome, in characters."""
LOOKING = frozenset(
    {
        "glob",
        "grep",
        "invalid",
        "list",
        "list_directory",
        "ls",
        "read",
        "read_file",
        "read_many_files",
        "search_file_content",
        "structuredoutput",
        "todowrite",
        "toolsearch",
        "update_plan",
        "write_todos",
    }
)
"""Names of tools that change nothing, in lower case (`invalid` is OpenCode's name for a tool that
does not exist). If an agent uses only these tools after a question, the question is still open."""


class OpenEnds(Struct):
    """The denied calls, questions and other open ends of an attempt, collected event by event."""

    calls: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name and main argument of the running calls, by id."""
    known: set[str] = field(default_factory=set)
    """Ids of the calls whose denial was already counted."""
    denied: dict[tuple[str, str], int] = field(default_factory=dict)
    """Number of denials of each call, by tool and main argument. A call that succeeded later is
    removed."""
    denials: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Ids of the denied calls, by tool and main argument."""
    sandboxed: set[tuple[str, str]] = field(default_factory=set)
    """The denied calls that were stopped by a sandbox, by tool and main argument."""
    hooked: set[str] = field(default_factory=set)
    """Ids of calls that a hook of the user denied. An approval cannot let them run."""
    more: int = 0
    """Number of further denied calls, which are not stored because of the limit `MOST`."""
    deferred: ToolDenied | None = None
    question: QuestionAsked | None = None
    word: LastWordGiven | None = None
    cut: str = ""
    """Reason why the agent's newest answer is incomplete; empty if it is complete."""
    refused: bool = False
    """Whether the model refused to answer and the agent did no work after that."""
    last: str = ""
    """The agent's newest text."""
    speaks: bool = False
    """Whether the newest event of the agent was text."""
    acted: bool = False

    def complete(self, event: AgentEvent) -> AgentEvent | None:
        """Return the event, or a completed copy if it is a denial: the name and argument of the
        denied call are added if they are known. Return None for a denial that was already counted.
        """
        if not isinstance(event, ToolDenied):
            return event
        if event.tool_id in self.known:
            return None
        name, summary = self.calls.get(event.tool_id, ("", ""))
        return ToolDenied(
            tool_id=event.tool_id,
            name=event.name or name,
            summary=event.summary or summary,
            by=event.by,
            reason=event.reason,
            deferred=event.deferred,
            aside=event.aside,
        )

    def absorb(self, event: AgentEvent) -> None:
        """Update the collected facts with one event of the agent."""
        match event:
            case TurnStarted():
                # A new prompt means that a call which was deferred is no longer open.
                self.speaks, self.deferred = False, None
            case Said(text=text, aside=False):
                self.last, self.speaks, self.cut = text[:WORDS], bool(text.strip()), ""
            case ToolStarted():
                self.calls[event.tool_id] = (event.name, event.summary)
                self.speaks, self.acted, self.cut = False, True, ""
            case ToolEnded():
                self._ended(event)
            case ToolDenied():
                self._denied(event)
            case LastWordGiven():
                self.word, self.speaks = event, True
            case QuestionAsked(settled=False):
                self.question = event
            case ReplyCut(reason="refusal"):
                self.refused, self.cut = True, "refusal"
            case ReplyCut(reason=reason):
                self.cut = reason
            case TurnEnded(text=text):
                self.last = text[:WORDS] or self.last
                self.speaks = self.speaks or bool(text.strip())
            case _:
                pass

    def settle(self, ids: Container[str], calls: Iterable[tuple[str, str]]) -> None:
        """Remove the denied calls that a person has refused. `ids` has ids of denials; `calls` has
        calls as pairs of tool and main argument."""
        if self.deferred is not None and self.deferred.tool_id in ids:
            self.deferred = None
        for call in (*calls, *self.refused_calls(ids)):
            self.denied.pop(call, None)

    def open_ids(self) -> frozenset[str]:
        """Return the ids of denied calls that a person could still allow, and the id of an
        unanswered question. A call that ran later is left out."""
        asked = {self.question.tool_id} if self.question is not None else set()
        denied = chain.from_iterable(self.denials[call] for call in self.denied)
        return frozenset({*asked, *denied} - {"", *self.hooked})

    def refused_calls(self, ids: Container[str]) -> list[tuple[str, str]]:
        """Return the calls (tool and main argument) whose denial ids are all in `ids`."""
        found = []
        for call, known in self.denials.items():
            if all(each in ids for each in known):
                found.append(call)
        return found

    def _ended(self, event: ToolEnded) -> None:
        call = self.calls.pop(event.tool_id, ("", ""))
        if not event.ok:
            return
        self.denied.pop(call, None)
        if call[0].lower() in LOOKING:
            return
        self.question, self.refused = None, False
        # A sandbox may stop only a part of a command. If a later call succeeded, it is assumed that
        # the agent found another way.
        for each in self.sandboxed:
            self.denied.pop(each, None)
        self.sandboxed.clear()

    def _denied(self, event: ToolDenied) -> None:
        self.known.add(event.tool_id)
        if event.deferred:
            self.deferred = event
            return
        if event.by == "hook":
            self.hooked.add(event.tool_id)
        call = (event.name, event.summary)
        self.denials.setdefault(call, []).append(event.tool_id)
        if call in self.denied or len(self.denied) < MOST:
            self.denied[call] = self.denied.get(call, 0) + 1
            if event.by == "sandbox":
                self.sandboxed.add(call)
        else:
            self.more += 1


def judge(outcome: Outcome, ends: OpenEnds, policy: OnDenied) -> Outcome:
    """Return the outcome of an attempt, corrected if its agent reported success but left something
    open. Other outcomes are unchanged."""
    if outcome.kind is OutcomeKind.REFUSED:
        return _with(outcome, OutcomeKind.REFUSED, _refusal(ends, outcome.detail))
    if not outcome.ok:
        return outcome
    if ends.deferred is not None:
        call = _call((ends.deferred.name, ends.deferred.summary))
        return _with(
            outcome,
            OutcomeKind.NEEDS_INPUT,
            f"a hook deferred a tool call, which did not run: {call}",
        )
    if ends.refused:
        return _with(outcome, OutcomeKind.REFUSED, _refusal(ends, ""))
    if ends.question is not None:
        return _with(outcome, OutcomeKind.NEEDS_INPUT, question_line(ends.question, ends.last))
    if ends.denied and policy is not OnDenied.REPORT:
        if policy is OnDenied.FAIL:
            kind = OutcomeKind.DENIED
        else:
            kind = OutcomeKind.NEEDS_INPUT
        return _with(outcome, kind, denials(ends))
    if ends.cut:
        return _with(
            outcome, OutcomeKind.TRUNCATED, f"the model's last answer broke off ({ends.cut})"
        )
    if not ends.speaks:
        return _with(outcome, OutcomeKind.TRUNCATED, "the model's last answer was empty")
    if ends.word is not None:
        return _with_last_word(outcome, ends.word)
    return outcome


def _with_last_word(outcome: Outcome, word: LastWordGiven) -> Outcome:
    """Return the outcome, corrected by the agent's last word (its structured final report). The
    last word never turns a failure into a success, but it is believed if it says that the work is
    not done."""
    if word.status == "blocked":
        if word.questions:
            asks = f"; it asks: {_line(' '.join(word.questions))}"
        else:
            asks = ""
        detail = f"it says that it is blocked: {_line(word.summary)}{asks}"
        return _with(outcome, OutcomeKind.NEEDS_INPUT, detail)
    if word.status == "incomplete":
        detail = f"it says that the work is incomplete: {_line(word.summary)}"
        return _with(outcome, OutcomeKind.FAILED, detail)
    return outcome


def question_line(question: QuestionAsked, last: str = "") -> str:
    """Return the question on one line, with its options. `last` (the agent's last text) is used if
    the question itself is not in the agent's output."""
    if question.options:
        options = f" ({_line(', '.join(question.options))})"
    else:
        options = ""
    return f"it asks: {_line(question.text or last)}{options}"


def denials(ends: OpenEnds) -> str:
    """Return one sentence with the number of denied calls, and the first `NAMED` of them with the
    number of denials of each."""
    total = sum(ends.denied.values()) + ends.more
    first = []
    for call, count in list(ends.denied.items())[:NAMED]:
        first.append(f"{_call(call)} ({count} times)" if count > 1 else _call(call))
    beyond = len(ends.denied) + ends.more - NAMED
    more = f" and {beyond} more" if beyond > 0 else ""
    calls = "1 call was" if total == 1 else f"{total} calls were"
    return f"{calls} denied: {', '.join(first)}{more}"


def _refusal(ends: OpenEnds, detail: str) -> str:
    return f"the model refused: {_line(ends.last or detail)}".rstrip(": ")


def _call(call: tuple[str, str]) -> str:
    name, summary = call
    return f"{name or 'a tool'} {_line(summary, 120)}".rstrip()


def _line(words: str, limit: int = WORDS) -> str:
    line = " ".join(words.split())
    if len(line) <= limit:
        return line
    return f"{line[: limit - 1]}…"


def _with(outcome: Outcome, kind: OutcomeKind, detail: str) -> Outcome:
    return replace(outcome, kind=kind, detail=detail)
