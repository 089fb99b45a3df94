"""The piece of a unified diff that a comment on a line is about. Pure."""

from __future__ import annotations

import re

_HEAD = re.compile(r"@@ -(\d{1,9})(?:,\d{1,9})? \+(\d{1,9})(?:,\d{1,9})? @@")
SHOWN = 12
"""Lines that are shown, the commented one last."""
LINE_MOST = 300
"""Characters of one of them."""


def hunk_at(diff: str, line: int, *, removed: bool = False) -> str:
    """Return the hunk that has the line, to the line itself; empty where none has. `removed`: the
    line is counted in the file as it was before the change."""
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
    """Return the last lines of a hunk, with its head: a comment is on the last one."""
    lines = [
        line if len(line) <= LINE_MOST else f"{line[:LINE_MOST]} [...]"
        for line in hunk.splitlines()
    ]
    if len(lines) <= SHOWN + 1:
        return "\n".join(lines)
    head = lines[:1] if lines[0].startswith("@@") else []
    return "\n".join([*head, "[...]", *lines[-SHOWN:]])
