"""What the calls of all agents have in common: the form of a question, the words of a sandbox.
Pure.

Claude Code's `AskUserQuestion`, Codex's `request_user_input`, Gemini CLI's `ask_user` and
OpenCode's `question` all take a list `questions` with `question` and `options` of `label` each.
"""

from __future__ import annotations

import re
from typing import Any

from perdure.agents.shared import json_lines
from perdure.model.events import QuestionAsked

SUMMARY = 500
MOST = 20
"""Number of offered answers that are kept."""


_SANDBOX = re.compile(r"Read-only file system|Operation not permitted|seccomp|landlock")
"""How a command says that a sandbox stopped it."""


def sandboxed(output: str) -> bool:
    """Whether a sandbox stopped the command that failed with this output."""
    return _SANDBOX.search(output) is not None


def question(tool_id: str, given: Any) -> QuestionAsked:
    """All questions of one call as one, with the answers that it offers."""
    asked = json_lines.items(json_lines.part(given, "questions"))
    options = [option for each in asked for option in json_lines.items(each.get("options"))]
    return QuestionAsked(
        tool_id,
        json_lines.text(" ".join(json_lines.text(each.get("question")) for each in asked), SUMMARY),
        tuple(json_lines.text(option.get("label"), SUMMARY) for option in options[:MOST]),
    )
