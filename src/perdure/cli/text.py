"""Text for a terminal. What agents, repositories and networks wrote is hostile: it is cleaned before it is shown."""

from __future__ import annotations

import re
import time

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])")
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def clean(text: str) -> str:
    """The text without escape sequences, control characters (but newline and tab) and direction overrides."""
    return _HIDDEN.sub("", _ESCAPES.sub("", text)).encode("utf-8", "replace").decode()


def one_line(text: str, width: int = 100) -> str:
    """Clean, on one line, cut with a mark."""
    line = " ".join(clean(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def age(then_ms: int, now_ms: int) -> str:
    """`12s`, `5m`, `3h`, `2d`: how long ago."""
    seconds = max(0, (now_ms - then_ms) // 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def clock(ms: int) -> str:
    """A moment in local time, for a person."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


def tokens(count: int) -> str:
    """`950`, `12.3k`, `1.2M`."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 1_000_000 else f"{count / 1_000_000:.1f}M"
