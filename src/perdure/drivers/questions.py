"""A question that an agent asks by a tool: the agents agree on its form. Pure.

Claude Code's `AskUserQuestion`, Codex's `request_user_input`, Gemini CLI's `ask_user` and OpenCode's
`question` all take a list `questions` with `question` and `options` of `label` each.
"""

from __future__ import annotations

from typing import Any

from perdure.drivers import lines
from perdure.events import QuestionAsked

SUMMARY = 500
MOST = 20
"""Number of offered answers that are kept."""


def question(tool_id: str, given: Any) -> QuestionAsked:
    """All questions of one call as one, with the answers that it offers."""
    asked = lines.items(lines.part(given, "questions"))
    options = [option for each in asked for option in lines.items(each.get("options"))]
    return QuestionAsked(
        tool_id,
        lines.text(" ".join(lines.text(each.get("question")) for each in asked), SUMMARY),
        tuple(lines.text(option.get("label"), SUMMARY) for option in options[:MOST]),
    )
