"""Escapes text of agents and strangers, so that a forge shows it without acting on it. Pure.

In code, GitHub, Gitea, Forgejo and GitLab recognize no mentions, references, commands or HTML
(github.github.com/gfm 6.3 and 4.5; docs.gitlab.com/user/markdown). So foreign text is shown as
code, between fences longer than any in it.
"""

from __future__ import annotations

import re

from perdure.rules.text import clean, one_line

_REFERENCE = re.compile(r"(?<=[#!@$%&~^])(?=\w)|(?<=:)(?=//)|(?<=\w-)(?=\d)")
_APART = "\u2060"
"""A word joiner: it is invisible, and breaks a reference or mention into two words."""


def code(text: str, width: int = 200) -> str:
    """Return a word or a sentence as code on one line, also safe in a table's cell."""
    line = one_line(text, width).replace("`", "'").replace("|", "\u00a6")
    if line:
        return f"`{line}`"
    return ""


def block(text: str, most: int) -> str:
    """Return lines as a code block, with at most `most` characters of them. Empty for an empty
    text."""
    whole = clean(text).replace("\r", "").strip()
    if not whole:
        return ""
    if len(whole) <= most:
        shown = whole
    else:
        shown = f"{whole[:most].rstrip()}\n[... {len(whole) - most} more characters]"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def title(text: str, width: int = 200) -> str:
    """Return a title in which references, mentions and addresses are broken up, because a title
    cannot contain code."""
    return _REFERENCE.sub(_APART, one_line(text, width).replace("<", "\u2039").replace("`", "'"))
