"""Reads and writes durations in the form that people use in settings, rules and plans."""

from __future__ import annotations

import re


def duration(text: str) -> float:
    """Return the number of seconds in a text such as `90`, `90s`, `15m`, `2h` or `1d`. Raises
    ValueError for any other text."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|h|d)?", text.strip())
    if not match:
        raise ValueError("expected a duration such as 90s, 15m, 2h or 7d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]


def written(seconds: float) -> str:
    """Return a duration as text, in the largest unit that gives a whole number: `90s`, `2h`, `14d`.
    `duration` reads it back."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.12g}s"
