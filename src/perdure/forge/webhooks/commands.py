"""Finds the answer to an agent's request in a comment: `/approve`, `/deny why`, `/answer text`, or
a plain reply. Pure. Called by `dispatch.request_replies`.

A command must be the first line of a comment. So it is never inside a quote, code or HTML, because
these begin with a line of their own. On a merge request GitLab executes `/approve` itself, and then
sends no webhook for the comment. So each command can also be written as `/perdure approve`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import Struct

from perdure.forge.webhooks.author_text import unquoted, visible_text
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.rules.requests import ID_LENGTH, ID_LETTERS, is_shown_whole, short_id

_COMMAND = re.compile(
    r" {0,3}/(?:perdure[ \t]+)?(approve|deny|answer)(?:[ \t]+(.*))?", re.IGNORECASE
)
_NAMED = re.compile(rf"([{ID_LETTERS}]{{{ID_LENGTH}}})(?:\s+(.*))?", re.IGNORECASE | re.DOTALL)
KINDS = {"approve": AnswerKind.ALLOW, "deny": AnswerKind.DENY, "answer": AnswerKind.TEXT}


class CommentAnswer(Struct, frozen=True, kw_only=True):
    """An answer that was found in a comment. `request` is the short id that the comment names;
    empty if it names none."""

    answer: AnswerKind
    request: str = ""
    words: str = ""
    command: bool = True
    """Whether the answer is a command such as `/approve`. A plain reply can answer only a question.
    """
    problem: str = ""
    """Reason why the command cannot be carried out, as a sentence; otherwise empty."""


def answer_in(text: str) -> CommentAnswer | None:
    """Return the command in a comment. If there is none, return the comment's text without quotes
    as a plain reply, or None if no text is left."""
    first, _, rest = text.lstrip("\r\n").partition("\n")
    found = _COMMAND.fullmatch(first.rstrip())
    if found is None:
        words = unquoted(text)
        if words:
            return CommentAnswer(answer=AnswerKind.TEXT, words=words, command=False)
        return None
    kind = KINDS[found[1].lower()]
    said = "\n".join(filter(None, (found[2] or "", unquoted(rest)))).strip()
    named = _NAMED.fullmatch(said)
    if named:
        request, words = (named[1].lower(), (named[2] or "").strip())
    else:
        request, words = ("", said)
    problem = ""
    if any(_COMMAND.fullmatch(line.rstrip()) for line in visible_text(rest).splitlines()):
        problem = "A comment answers one request: write a comment for each."
    elif kind is AnswerKind.ALLOW and words:
        # An approval with further words, such as "but not on Fridays", would look conditional.
        # Nothing would enforce the condition, so such an approval is rejected.
        problem = "An approval takes no further words, because nothing would read them."
    elif kind is AnswerKind.ALLOW and not request:
        # An approval without an id could approve a newer request that its author has not seen yet.
        problem = "An approval must name its request."
    elif kind is AnswerKind.TEXT and not words:
        problem = "The answer is empty."
    return CommentAnswer(answer=kind, request=request, words=words, problem=problem)


def how_to(request: AgentRequest, prefix: str, clean: Callable[[str], str]) -> str:
    """Return the commands that answer the request, as Markdown. `clean` removes secrets from a
    text. If it would change the text of the call, approval is not offered."""
    name = short_id(request)
    if request.kind is RequestKind.QUESTION:
        return f"`{prefix}answer {name} your answer`"
    if is_shown_whole(request, clean):
        allow = f"`{prefix}approve {name}`, or "
    else:
        allow = ""
    return f"{allow}`{prefix}deny {name} why`"


def is_command(text: str) -> bool:
    """Return whether the comment begins with a command that answers a request."""
    return _COMMAND.fullmatch(text.lstrip("\r\n").partition("\n")[0].rstrip()) is not None
