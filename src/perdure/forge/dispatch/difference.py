"""Computes the changes of an edited text, as removed and added lines. Pure.

The texts may be hostile. The common beginning and end are removed first, and only a short remainder
is compared line by line. So the cost stays linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

AROUND = 2
"""Number of unchanged lines that are shown before and after each change."""
COMPARED_MOST = 300
"""Maximum number of lines of each text that are compared line by line."""


def difference(before: str, now: str) -> str:
    """Return the lines that differ, marked `- ` and `+ `, with a few unchanged lines around them.
    Empty if no lines differ."""
    old, new = _lines(before), _lines(now)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    gone, come = old[start : len(old) - end], new[start : len(new) - end]
    if not gone and not come:
        return ""
    above = [f"  {line}" for line in old[max(0, start - AROUND) : start]]
    below = [f"  {line}" for line in old[len(old) - end : len(old) - end + AROUND]]
    return "\n".join([*above, *_compared(gone, come), *below])


def _lines(text: str) -> list[str]:
    """Return the lines of the text without trailing spaces, because a forge's editor may change
    these."""
    return [line.rstrip() for line in text.strip().splitlines()]


def _compared(gone: Sequence[str], come: Sequence[str]) -> list[str]:
    if max(len(gone), len(come)) > COMPARED_MOST:
        return [*(f"- {line}" for line in gone), *(f"+ {line}" for line in come)]
    found: list[str] = []
    for what, i, k, m, n in SequenceMatcher(None, gone, come, autojunk=False).get_opcodes():
        if what == "equal":
            found += _shortened(gone[i:k])
        else:
            found += [*(f"- {line}" for line in gone[i:k]), *(f"+ {line}" for line in come[m:n])]
    return found


def _shortened(lines: Sequence[str]) -> list[str]:
    """Return the unchanged lines between two changes. Leaves out the middle if there are many."""
    shown = [f"  {line}" for line in lines]
    if len(shown) <= 2 * AROUND + 1:
        return shown
    left_out = f"  [{len(shown) - 2 * AROUND} unchanged lines]"
    return [*shown[:AROUND], left_out, *shown[-AROUND:]]
