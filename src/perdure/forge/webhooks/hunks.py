"""Finds the part of a unified diff to which a comment on a line belongs. Pure."""

from __future__ import annotations

import re

_HEAD = re.compile(r"@@ -(\d{1,9})(?:,\d{1,9})? \+(\d{1,9})(?:,\d{1,9})? @@")
SHOWN = 12
"""Maximum number of lines of a hunk that are shown. The last of them is the line with the comment.
"""
LINE_MOST = 300
"""Number of characters after which a shown line is cut."""


def hunk_at(diff: str, line: int, *, removed: bool = False) -> str:
    """Return the hunk that contains the line, up to the line itself; empty if no hunk contains it.
    With `removed`, `line` is a number in the old file."""
    head, old, new = "", 0, 0
    kept: list[str] = []
    for each in diff.splitlines():
        if found := _HEAD.match(each):
            head, kept, old, new = each, [], int(found[1]), int(found[2])
            continue
        if not head or each[:1] not in ("", " ", "+", "-"):
            continue
        kept.append(each)
        is_it = (old if removed else new) == line and each[:1] != ("+" if removed else "-")
        if is_it:
            return end_of("\n".join([head, *kept]))
        old += each[:1] != "+"
        new += each[:1] != "-"
    return ""


def end_of(hunk: str) -> str:
    """Return the header (`@@ ... @@`) and the last lines of a hunk that ends with the line of the
    comment."""
    lines = []
    for line in hunk.splitlines():
        lines.append(line if len(line) <= LINE_MOST else f"{line[:LINE_MOST]} [...]")
    if len(lines) <= SHOWN + 1:
        return "\n".join(lines)
    head = lines[:1] if lines[0].startswith("@@") else []
    return "\n".join([*head, "[...]", *lines[-SHOWN:]])
