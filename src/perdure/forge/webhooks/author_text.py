"""Finds mentions, commands and answers in the words that the author of a comment wrote. Words in
quotes, code and HTML comments do not count. Pure.

`mentioned` and `stop_commands` are called by the modules that read payloads. They follow Markdown
as GitHub, Gitea, Forgejo and GitLab read it (github.github.com/gfm): block quotes begin with `>`;
code is between fences or backticks, or indented by four spaces. The cost is linear in the length of
the text.

`answer_in` finds the answer to an agent's request: `/approve`, `/deny why`, `/answer text`, or a
plain reply. It is called by `dispatch.comments`. A command must be the first line of a comment. So
it is never inside a quote, code or HTML, because these begin with a line of their own. On a merge
request GitLab executes `/approve` itself, and then sends no webhook for the comment. So each
command can also be written as `/perdure approve`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from msgspec import Struct

from perdure.forge.webhooks.payload import LIST_MOST
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind
from perdure.rules.requests import ID_LENGTH, ID_LETTERS, is_shown_whole, short_id

LOGIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?")
"""Pattern of a login that can be mentioned. A GitHub bot (`name[bot]`) cannot."""
_MENTION = re.compile(r"(?<![\w@/.`])@([A-Za-z0-9][A-Za-z0-9._-]{0,99})")
_STOP = re.compile(
    r" {0,3}@([A-Za-z0-9][A-Za-z0-9._-]{0,99})[,:]?[ \t]+(?:please[ \t]+)?stop(?:[ "
    r"\t]+please)?[.!]*",
    re.IGNORECASE,
)
_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})")
_QUOTE = re.compile(r"[ \t]{0,3}>")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|[0-9]{1,9}[.)])[ \t]")
_INDENTED = re.compile(r" {4}| {0,3}\t")
_UNCLOSED = re.compile(r" {0,3}<!--")
_UNCLOSED_IN_LIST = re.compile(rf"(?:{_ITEM.pattern}[ \t]*|[ \t]*)<!--")


def mentioned(text: str) -> tuple[str, ...]:
    """Return the logins that a text mentions outside quotes and code, each once, in order."""
    found = (each.rstrip(".-_") for each in _MENTION.findall(visible_text(text)))
    return tuple(dict.fromkeys(found))[:LIST_MOST]


def stop_commands(text: str) -> tuple[str, ...]:
    """Return the logins that a text tells to stop. The command is `@login stop` on a separate
    line."""
    found = [_STOP.fullmatch(line.rstrip()) for line in visible_text(text).splitlines()]
    logins = (match[1].rstrip(".-_") for match in found if match)
    return tuple(dict.fromkeys(logins))[:LIST_MOST]


def visible_text(text: str) -> str:
    """Return the text without quotes, code and HTML comments. Each line of a quote or a code block
    is replaced by an empty line."""
    kept = ["" if quoted or code else line for line, quoted, code in _read(text)]
    return _without_spans("\n".join(kept))


def unquoted(text: str) -> str:
    """Return the text without quotes and HTML comments. Code is kept."""
    return "\n".join(line for line, quoted, _ in _read(text) if not quoted).strip()


def _read(text: str) -> Iterator[tuple[str, bool, bool]]:
    """Yield each line without HTML comments, with two flags: whether it is quoted, and whether it
    is code. A line that begins with an HTML comment which never ends hides the rest of the text, so
    nothing more is yielded."""
    is_first = True
    fence = ""
    in_list = in_quote = is_blank = in_code = False
    for line in _without_comments(text).splitlines():
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
            yield line, False, True
            continue
        in_item = in_list or _ITEM.match(line)
        if (_UNCLOSED_IN_LIST if in_item else _UNCLOSED).match(line):
            return
        if mark and not (mark[1][0] == "`" and "`" in line[mark.end() :]):
            fence, in_quote, is_first = mark[1], False, False
            yield line, False, True
            continue
        was_blank, is_blank, is_first = is_blank or is_first, not line.strip(), False
        # A quoted paragraph continues without `>` until a blank line (lazy continuation).
        in_quote = bool(_QUOTE.match(line)) or (in_quote and not is_blank and not _ITEM.match(line))
        if _ITEM.match(line):
            in_list = True
        elif not is_blank and not line[0].isspace():
            in_list = False
        starts = was_blank or in_code
        in_code = bool(_INDENTED.match(line)) and not is_blank and not in_list and starts
        yield line, in_quote, in_code


def _without_comments(text: str) -> str:
    parts: list[str] = []
    at = 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start)) >= 0:
        parts.append(text[at:start])
        at = end + 3
    return "".join([*parts, text[at:]])


def _without_spans(text: str) -> str:
    """Return the text without inline code: text between two runs of backticks of equal length,
    within one paragraph."""
    return "\n\n".join(map(_without_spans_of, re.split(r"\n[ \t]*\n", text)))


def _without_spans_of(paragraph: str) -> str:
    ticks = [(found.start(), found.end()) for found in re.finditer("`+", paragraph)]
    places: dict[int, list[int]] = {}
    for number, (start, end) in enumerate(ticks):
        places.setdefault(end - start, []).append(number)
    ahead = {length: iter(numbers) for length, numbers in places.items()}
    closers = dict.fromkeys(places, -1)
    parts: list[str] = []
    at = number = 0
    while number < len(ticks):
        start, end = ticks[number]
        length = end - start
        while closers[length] <= number:
            closers[length] = next(ahead[length], len(ticks))
        closer = closers[length]
        if closer >= len(ticks):
            number += 1
            continue
        parts.append(paragraph[at:start])
        at = ticks[closer][1]
        number = closer + 1
    return " ".join([*parts, paragraph[at:]])


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
    """Return the commands that answer the request, as Markdown. `prefix` begins each command on
    this forge. `clean` removes secrets from a text. The command to approve a call is left out if a
    comment cannot show the whole call, or if `clean` would change it."""
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
