"""The text of an agent's request as a person sees it before they answer, and the meaning of what
they type.

Used by the prompt of `run` and `attach`, and by `perdure top`, so that a request looks the same and
is answered the same way in both.
"""

from __future__ import annotations

import json
from typing import Any

from perdure.model.requests import AgentRequest, AnswerKind
from perdure.rules.approvals import why_not_allowed
from perdure.rules.requests import Question, options_of, payload_lines, questions
from perdure.rules.text import visible

YES = frozenset({"y", "yes"})
NO = frozenset({"n", "no"})
QUESTION_PROMPT = "Your answer: "


def lines_of(request: AgentRequest) -> list[str]:
    """Return the lines that show the request as it is stored. Hidden characters are made visible,
    and no line contains a line break."""
    # A line from `_lines` may contain newlines. Split it there, because the caller marks each line
    # as text of the agent.
    physical = "\n".join(_lines(request)).split("\n")
    return [visible(line.expandtabs(4)) for line in physical]


def _lines(request: AgentRequest) -> list[str]:
    if questions(request):
        return _question_lines(request)
    head = [f"tool: {_value(request.tool)}"]
    try:
        given = json.loads(request.payload)
    except ValueError:
        return [*head, *request.payload.splitlines()]
    if not isinstance(given, dict):
        return [*head, *payload_lines(request)]
    rest = dict(given)
    body: list[str] = []
    for key, sign in (("command", "$ "), ("old_string", "- "), ("new_string", "+ ")):
        if isinstance(rest.get(key), str):
            body += _signed(rest.pop(key), sign)
    if request.tool == "Write" and isinstance(rest.get("content"), str):
        body += _signed(rest.pop("content"), "+ ")
    for key, value in rest.items():
        head.append(f"{_value(key)}: {_value(value)}")
    return head + body


def _signed(text: str, sign: str) -> list[str]:
    # Split only at newlines, as a shell does. `splitlines` would also split at other characters.
    return [f"{sign}{line}" for line in text.split("\n")]


def _value(value: Any) -> str:
    if isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text.replace("\n", "\\n")


def _question_lines(request: AgentRequest) -> list[str]:
    lines = []
    for each in questions(request):
        lines += str(each.get("question", "")).split("\n")
        for number, label in enumerate(_labels(each), 1):
            lines.append(f"  {number}. {_value(label)}")
    return lines


def _labels(question: Question) -> list[str]:
    return [str(option.get("label", "")) for option in options_of(question)]


def questions_of(request: AgentRequest) -> list[Question]:
    """Return the questions that a person has to answer, each with an answer of its own. A request
    that was too long to be stored whole counts as one question."""
    return questions(request) or [{}]


def call_prompt(request: AgentRequest) -> str:
    """Return the prompt for the answer to a call."""
    if why_not_allowed(request):
        return "It can only be refused: n, or a reason: "
    return "Allow it once? y, n, or a reason for refusing: "


def verdict_of(request: AgentRequest, said: str) -> tuple[AnswerKind, str] | None:
    """Return what the person decided about a call; None if the typed text decides nothing."""
    if said.lower() in NO:
        return AnswerKind.DENY, ""
    if said.lower() in YES and not why_not_allowed(request):
        return AnswerKind.ALLOW, ""
    # A single word such as "yep" or "ok" must not count as the reason for a refusal, so ask again.
    if len(said.split()) > 1:
        return AnswerKind.DENY, said
    return None


def words_of(question: Question, said: str) -> str:
    """Return the answer to one question; empty if nothing was typed. The number of an option stands
    for its label."""
    labels = _labels(question)
    if said.isdecimal() and 1 <= int(said) <= len(labels):
        return " ".join(labels[int(said) - 1].split())
    return said
