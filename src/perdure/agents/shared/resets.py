"""Finds the end of a usage limit in an agent's error message. Pure: the caller passes the current
time and the time zone.

Observed messages:

- Claude Code 2.1.329: "resets 8:41am (UTC)", "resets Nov 24, 8:48am (Europe/Berlin)", "resets Jun
  9, 2027, 9:48am (..)".
- Older versions of Claude Code: "usage limit reached|1749924000".
- Codex 0.169.0: "try again at 5:46 AM.", "try again at Nov 24th, 2026 10:42 AM." (local time).

The messages name no seconds, so the end of the named minute is returned.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from perdure.patterns import late_pattern

_EPOCH = late_pattern(r"limit reached\|(\d{10})(?!\d)")
_CLOCK = late_pattern(
    r"(?:resets?|try again|available)\s+(?:at\s+|on\s+)?"
    r"(?:(?P<month>[A-Z][a-z]{2})[a-z]*\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?,?\s+"
    r"(?:(?P<year>\d{4}),?\s+)?(?:at\s+)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s*(?P<half>[ap])\.?m\b\.?"
    r"(?:\s*\((?P<zone>[\w/+-]+)\))?",
    re.IGNORECASE,
)
_SPAN = late_pattern(
    r"(?:try again|retry|resets?) (?:in|after)\s+((?:\d+(?:\.\d+)?\s*[a-z]+[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
_PIECE = late_pattern(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_SECONDS = {
    "ms": 0.001,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
}
_UNITS = {
    **_SECONDS,
    "day": 86400.0,
    "secs": 1.0,
    "seconds": 1.0,
    "mins": 60.0,
    "minutes": 60.0,
    "hours": 3600.0,
    "days": 86400.0,
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MINUTE = timedelta(minutes=1)
_FURTHEST = timedelta(days=400)


def resets_at(words: str, now: int, zone: tzinfo | None = None) -> int | None:
    """Return the end of the limit in milliseconds since 1970; None if the message names no usable
    time. `now` is in milliseconds since 1970. `zone` None means the machine's own time zone."""
    if found := _EPOCH.search(words):
        return int(found[1]) * 1000
    if found := _CLOCK.search(words):
        return _clock(found, now, zone)
    if found := _SPAN.search(words):
        seconds = 0.0
        for number, unit in _PIECE.findall(found[1]):
            seconds += float(number) * _UNITS.get(unit.lower(), 0.0)
        if seconds:
            return now + int(min(seconds, _FURTHEST.total_seconds()) * 1000)
        return None
    return None


def _clock(found: re.Match[str], now: int, zone: tzinfo | None) -> int | None:
    """Return the next moment with this time of day, and with this date if one is named, in
    milliseconds since 1970. None if there is no such moment within 400 days."""
    try:
        here = datetime.fromtimestamp(now / 1000, UTC).astimezone(_zone(found["zone"], zone))
        hour = int(found["hour"]) % 12 + (12 if found["half"].lower() == "p" else 0)
        moment = here.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0)
        if found["month"]:
            month = _MONTHS.index(found["month"].lower()) + 1
            moment = moment.replace(
                year=int(found["year"] or here.year), month=month, day=int(found["day"])
            )
            if moment + _MINUTE <= here and not found["year"]:
                moment = moment.replace(year=here.year + 1)
        elif moment + _MINUTE <= here:
            moment += timedelta(days=1)
        moment += _MINUTE
    except (ValueError, OverflowError):
        return None
    at = int(moment.timestamp() * 1000)
    if now < at <= now + int(_FURTHEST.total_seconds() * 1000):
        return at
    return None


def _zone(name: str | None, otherwise: tzinfo | None) -> tzinfo | None:
    if not name:
        return otherwise
    # Imported late, because it is slow to import and rarely needed.
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return otherwise
