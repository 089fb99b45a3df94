"""Escapes text of agents and strangers, so that a forge shows the text without acting on it. Pure.

Inside code, GitHub, Gitea, Forgejo and GitLab recognize no mentions, references, commands or HTML
(github.github.com/gfm 6.3 and 4.5; docs.gitlab.com/user/markdown). So untrusted text is shown as
code, between fences longer than any fence in the text.
"""

from __future__ import annotations

import re

from perdure.rules.text import clean, one_line

_REFERENCE = re.compile(r"(?<=[#!@$%&~^])(?=\w)|(?<=:)(?=//)|(?<=\w-)(?=\d)")
_APART = "\u2060"
"""A word joiner. It is invisible, and it splits a reference or mention so that the forge does not
recognize it."""


def code(text: str, width: int = 200) -> str:
    """Return a word or a sentence as inline code, which is also safe in a cell of a table."""
    line = one_line(text, width).replace("`", "'").replace("|", "\u00a6")
    if line:
        return f"`{line}`"
    return ""


def block(text: str, most: int) -> str:
    """Return the text as a code block, cut to `most` characters. Empty for an empty text."""
    whole = clean(text).replace("\r", "").strip()
    if not whole:
        return ""
    if len(whole) <= most:
        shown = whole
    else:
        shown = f"{whole[:most].rstrip()}\n[... {len(whole) - most} more characters]"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def title(text: str, width: int = 200) -> str:
    """Return a title in which all references, mentions and addresses are split, so that a forge
    does not recognize them. A title cannot contain code, so it cannot be escaped as in `code`."""
    return _REFERENCE.sub(_APART, one_line(text, width).replace("<", "\u2039").replace("`", "'"))
