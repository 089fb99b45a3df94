"""Parses the parts of tool calls that are the same for all agents: questions, the last word,
sandbox errors. Pure.

Claude Code's `AskUserQuestion`, Codex's `request_user_input`, Gemini CLI's `ask_user` and
OpenCode's `question` all take a list `questions`. Each question has `question` and `options`, and
each option has a `label`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from perdure.agents.shared import json_lines
from perdure.model.events import LastWordGiven, QuestionAsked
from perdure.patterns import late_pattern

SUMMARY = 500
MOST = 20
"""Maximum number of texts in one list of an event, for example of the answers that a question
offers. Further texts are dropped."""


LAST_WORD = Path(__file__).with_name("last_word.json")
"""Path of the JSON schema for the last word, the final answer that an agent is asked to give in a
fixed form."""
_FIELDS = {"status", "summary", "questions", "follow_ups"}
_STATUS = ("done", "nothing_to_do", "incomplete", "blocked")
_SANDBOX = late_pattern(r"Read-only file system|Operation not permitted|seccomp|landlock")
"""Pattern of the error texts that a command prints if a sandbox stopped it."""


def sandboxed(output: str) -> bool:
    """Return whether the output of a failed command shows that a sandbox stopped it."""
    return _SANDBOX.search(output) is not None


def main_argument(given: object, names: Sequence[str]) -> str:
    """Return the main argument of a tool call, cut to a length limit. The main argument is the
    command, if there is one. Else it is the first text that has one of `names` as its key (in the
    order of `names`), else the first text of all arguments. Empty if there is no text."""
    if not isinstance(given, dict):
        return ""
    if command := json_lines.text(given.get("command"), json_lines.COMMAND):
        return command
    named = (given.get(name) for name in names)
    texts = (value for value in (*named, *given.values()) if isinstance(value, str) and value)
    return json_lines.text(next(texts, ""), SUMMARY)


def last_word(given: object) -> LastWordGiven | None:
    """Return the agent's last word (its final answer in a fixed form). None if the answer does not
    match `last_word.json`. The texts are cut to the length limits of an event."""
    if not isinstance(given, dict) or set(given) != _FIELDS or given["status"] not in _STATUS:
        return None
    lists = [given["questions"], given["follow_ups"]]
    texts = list(chain.from_iterable(found for found in lists if isinstance(found, list)))
    if not all(isinstance(each, list) for each in lists):
        return None
    if not all(isinstance(each, str) for each in (given["summary"], *texts)):
        return None
    summary = json_lines.text(given["summary"], 4 * SUMMARY)
    questions, follow_ups = map(_texts, lists)
    return LastWordGiven(given["status"], summary, questions, follow_ups)


def _texts(found: Sequence[object]) -> tuple[str, ...]:
    return tuple(json_lines.text(each, SUMMARY) for each in found[:MOST])


def question(tool_id: str, given: object) -> QuestionAsked:
    """Return one event with all questions of a call and their offered answers."""
    asked = json_lines.items(json_lines.part(given, "questions"))
    words: list[str] = []
    labels: list[object] = []
    for each in asked:
        words.append(json_lines.text(each.get("question")))
        labels += [option.get("label") for option in json_lines.items(each.get("options"))]
    return QuestionAsked(tool_id, json_lines.text(" ".join(words), SUMMARY), _texts(labels))
