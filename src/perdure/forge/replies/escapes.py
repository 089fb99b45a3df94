"""Text of agents and strangers, so that a forge shows it and does nothing by it. Pure.

In code neither GitHub, Gitea, Forgejo nor GitLab finds mentions, references, commands or HTML
(github.github.com/gfm 6.3 and 4.5; docs.gitlab.com/user/markdown). So what others wrote is shown as
code, between marks that are longer than any in it.
"""

from __future__ import annotations

import re

from perdure.rules.text import clean, one_line

_REFERENCE = re.compile(r"(?<=[#!@$%&~^])(?=\w)|(?<=:)(?=//)|(?<=\w-)(?=\d)")
_APART = "\u2060"
"""A word joiner: nobody sees it, and no reference is found across it."""


def code(text: str, width: int = 200) -> str:
    """A word or a sentence on one line, also inside a table's cell."""
    line = one_line(text, width).replace("`", "'").replace("|", "\u00a6")
    return f"`{line}`" if line else ""


def block(text: str, most: int) -> str:
    """Lines as they are, at most so many characters of them. Empty for nothing."""
    whole = clean(text).replace("\r", "").strip()
    if not whole:
        return ""
    shown = (
        whole
        if len(whole) <= most
        else f"{whole[:most].rstrip()}\n[... {len(whole) - most} more characters]"
    )
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def title(text: str, width: int = 200) -> str:
    """A title, where there is no code: references to others, mentions and addresses are broken
    up."""
    return _REFERENCE.sub(_APART, one_line(text, width).replace("<", "\u2039").replace("`", "'"))
