"""Picks the most useful part of a command's output, so that an agent or a person can find out why
the command failed. Pure.

The output of a check is long, noisy and untrusted: progress bars, thousands of passed lines, one
traceback in the middle, and anything that an agent or a dependency prints. Output that fits is
returned whole. Otherwise the lines that name failures come first, then errors with the lines around
them, then the last lines. A note says that the rest is left out. Called by
`engine.attempt.verification`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from perdure.patterns import late_pattern

MOST = 6000
"""Maximum number of characters of an excerpt."""
WIDTH = 400
"""Maximum number of characters of one line in an excerpt."""
LAST = 12
NAMES = 20
AFTER = 6
"""Maximum number of lines shown for one error, including the line with the error itself."""
TRACE = 40

_NAMED = late_pattern(
    r"^\s*(FAILED|ERROR)\s+\S+"  # the summary of pytest
    r"|^\s*(FAIL|--- FAIL|not ok|✗|✘|×|●|✕)[:\s]+\S+"  # unittest, go, jest, TAP, vitest
    r"|^test \S+ \.\.\. FAILED"  # cargo
    r"|\b\d+ (failed|failures?|errors?)\b"
)
_ERROR = late_pattern(
    r"^E\s{2,}|\berror(\[\w+\])?:|\b\w*(Error|Exception)\b(:|$)|\bfatal\b|\bpanicked "
    r"at\b|\bundefined reference\b|\bassertion\b.*\bfailed\b"
    r"|\bsegmentation fault\b|\bnpm ERR!|\bcannot find\b|\bno such file\b|\bcommand not "
    r"found\b|\*\*\* .*\bError \d+|\bkilled\b",
    re.IGNORECASE,
)
_TRACEBACK = late_pattern(r"^(\s*)Traceback \(most recent call last\)")
_NOISE = late_pattern(
    r"^\s*$"
    r"|^[\s.=#>\-]*\d{1,3}(\.\d+)?\s?%"  # progress in percent
    r"|^\s*(Downloading|Downloaded|Collecting|Requirement already|Using "
    r"cached|Compiling|Fetching|Resolving|Unpacking)\b"
    r"|^\s*[.sxEF]{20,}\s*(\[\s*\d+%\])?$"
    r"|\b(PASSED|passed|ok)\s*(\[\s*\d+%\])?\s*$"
)


def lines_of(text: str) -> list[str]:
    """Return the lines as a terminal would show them at the end. Overwritten text is dropped,
    repeated lines are shown once, and long lines are cut at WIDTH."""
    shown: list[str] = []
    times = 1
    for raw in text.split("\n"):
        line = next((piece for piece in reversed(raw.split("\r")) if piece.strip()), "").rstrip()
        if len(line) > WIDTH:
            line = f"{line[:WIDTH]} [... {len(line) - WIDTH} more characters]"
        if shown and line and line == shown[-1]:
            times += 1
            continue
        if times > 1:
            shown.append(f"[the line above {times} times]")
        shown.append(line)
        times = 1
    if times > 1:
        shown.append(f"[the line above {times} times]")
    while shown and not shown[-1]:
        shown.pop()
    return shown


def excerpt(text: str, most: int = MOST) -> str:
    """Return at most `most` characters of a text that is already cleaned (no escapes, no control
    characters). A text that fits is returned whole. Of a longer text, only the most useful parts
    are returned."""
    lines = lines_of(text)
    whole = "\n".join(lines).strip("\n")
    if len(whole) <= most:
        return whole
    last = [line for line in lines[-4 * LAST :] if not _NOISE.search(line)][-LAST:] or lines[-LAST:]
    named = list(dict.fromkeys(line for line in lines if _NAMED.search(line)))
    parts = [
        (
            "Failures, by name:",
            named[:NAMES] + ([f"[{len(named) - NAMES} more]"] if len(named) > NAMES else []),
        )
    ]
    parts += [("", block) for block in _blocks(lines)]
    head = _fit(parts[:1], most // 3)
    tail = _fit([("The last lines:", last)], most // 4)
    middle = _fit(parts[1:], most - len(head) - len(tail) - 200)
    left = f"[{len(lines)} lines in all; what follows is the most telling part of them]"
    return "\n\n".join(filter(None, (left, head, middle, tail)))[:most]


def telling_line(text: str) -> str:
    """Return the single most useful line, for a list. This is the error message, or else the last
    line that is not noise."""
    lines = [line for line in lines_of(text) if line.strip() and not line.startswith("[")]
    traces = []
    for block in _blocks(lines):
        if _TRACEBACK.match(block[0]):
            traces.append(block[-1])
    found = (
        traces[-1:]
        or [line for line in lines if _ERROR.search(line)][:1]
        or [line for line in lines if not _NOISE.search(line)][-1:]
    )
    return " ".join((found or lines[-1:] or [""])[0].split())[:200]


def _blocks(lines: Sequence[str]) -> list[list[str]]:
    """Return each error together with the lines that belong to it. Tracebacks come first, then
    other errors, each in the order of the output."""
    traces, others = [], []
    at = 0
    while at < len(lines):
        if found := _TRACEBACK.match(lines[at]):
            block = _trace(lines, at, len(found[1]))
            traces.append(block)
            at += len(block)
        elif _ERROR.search(lines[at]) and not _NAMED.search(lines[at]):
            end = next(
                (n for n in range(at + 1, min(at + AFTER, len(lines))) if not lines[n]),
                min(at + AFTER, len(lines)),
            )
            others.append(list(lines[max(0, at - 1) : end]))
            at = end
        else:
            at += 1
    return [*traces, *others]


def _trace(lines: Sequence[str], at: int, indent: int) -> list[str]:
    """Return the lines of a traceback, including the line with the exception. A long traceback is
    cut in the middle."""
    end = at + 1
    while end < len(lines) and (
        not lines[end] or len(lines[end]) - len(lines[end].lstrip()) > indent
    ):
        end += 1
    block = list(lines[at : end + 1])
    if len(block) <= TRACE:
        return block
    return [*block[:6], f"[{len(block) - TRACE} lines left out]", *block[-(TRACE - 6) :]]


def _fit(parts: Iterable[tuple[str, Sequence[str]]], most: int) -> str:
    """Return as many parts as fit into `most` characters. The last part may be cut after a line."""
    taken: list[str] = []
    room = most
    for title, lines in parts:
        if not lines:
            continue
        kept = [title] if title else []
        for line in lines:
            if sum(map(len, kept)) + len(kept) + len(line) > room:
                break
            kept.append(line)
        if len(kept) <= bool(title):
            break
        text = "\n".join(kept)
        taken.append(text)
        room -= len(text) + 2
    return "\n\n".join(taken)
