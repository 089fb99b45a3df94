"""Determines outcomes from the way in which the process ended. Shared by the drivers' classifiers.

A classifier calls `by_supervisor` first, because an agent that perdure stopped did not fail. It
calls `by_process` last, if the agent's own output does not explain the end.

`resets_at` finds the end of a usage limit in an agent's error message. It is pure: the caller
passes the current time and the time zone. Observed messages:

- Claude Code 2.1.329: "resets 8:41am (UTC)", "resets Nov 24, 8:48am (Europe/Berlin)", "resets Jun
  9, 2027, 9:48am (..)".
- Older versions of Claude Code: "usage limit reached|1749924000".
- Codex 0.169.0: "try again at 5:46 AM.", "try again at Nov 24th, 2026 10:42 AM." (local time).

A message that names a time of day names no seconds, so the end of the named minute is returned.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo

from msgspec.structs import replace

from perdure.agents.shared import json_lines
from perdure.model import Exit, Outcome, OutcomeKind
from perdure.model.events import AgentEvent, TurnEnded
from perdure.patterns import late_pattern

DETAIL = 600
"""Maximum length of an outcome's detail, in characters."""

Rules = Sequence[tuple[OutcomeKind, re.Pattern[str]]]

_CAUSES = {
    "deadline": (OutcomeKind.TIMED_OUT, "it took longer than it was allowed to, and was ended"),
    "stalled": (OutcomeKind.STALLED, "it was silent for too long, and was ended"),
    "stopped": (OutcomeKind.CANCELLED, "it was stopped on request"),
    "retrying": (
        OutcomeKind.OVERLOADED,
        "it asked its service again and again without a whole answer, and was ended",
    ),
    "budget": (OutcomeKind.BUDGET_SPENT, "the budget was spent while it worked, and it was ended"),
    "flooded": (OutcomeKind.FAILED, "it wrote more output than is kept, and was ended"),
    "lapsed": (
        OutcomeKind.LOST,
        "its lease was not renewed: its supervisor was gone, or had lost the shared database for "
        "too long",
    ),
    "lost": (OutcomeKind.LOST, "the process disappeared"),
}


_NOT_STARTED = (126, 127)


def rule(kind: OutcomeKind, *patterns: str) -> tuple[OutcomeKind, re.Pattern[str]]:
    """Return one entry of a rule table. It is a pair of the kind of outcome and a pattern, which is
    case-insensitive and matches if any of `patterns` does."""
    return kind, late_pattern("|".join(patterns), re.IGNORECASE)


def judge(words: str, rules: Rules) -> OutcomeKind | None:
    """Return the kind of outcome that the first matching rule names; None if no rule matches the
    text."""
    for kind, pattern in rules:
        if pattern.search(words):
            return kind
    return None


def by_supervisor(exit: Exit) -> Outcome | None:
    """Return the outcome if perdure ended the process, or if it is unknown how the process ended.
    None in all other cases."""
    found = _CAUSES.get(exit.cause)
    if found:
        return ending(found[0], found[1], exit)
    return None


def by_process(exit: Exit, silent: str) -> Outcome:
    """Return the outcome that follows from exit code and signal, for an agent whose output does not
    explain its end. `silent` is the sentence to use if the process exited without a signal."""
    number = exit.signal or (exit.code - 128 if exit.code and 128 < exit.code < 160 else 0)
    if number == signal.SIGINT:
        return ending(OutcomeKind.CANCELLED, "it was interrupted (SIGINT)", exit)
    if number:
        return ending(OutcomeKind.FAILED, f"killed by {_name(number)}", exit)
    said = last_line(exit.stderr_tail)
    if exit.code in _NOT_STARTED:
        # A shell, env(1) and perdure's shim exit with these codes if a program is missing or cannot
        # be run. This is a configuration error, because the next attempt would end in the same way.
        return ending(
            OutcomeKind.CONFIG_ERROR,
            f"the agent could not be started (exit code {exit.code}): {said}".rstrip(": "),
            exit,
        )
    words = f": {said}" if said else ""
    return ending(OutcomeKind.FAILED, f"{silent} (exit code {exit.code}){words}", exit)


def ending(kind: OutcomeKind, detail: str, exit: Exit, until: int | None = None) -> Outcome:
    """Return an outcome of this kind, with the exit code and the signal of the process."""
    return Outcome(
        kind=kind,
        detail=json_lines.text(" ".join(detail.split()), DETAIL),
        until=until,
        code=exit.code,
        signal=exit.signal,
    )


def explained(outcome: Outcome, sentence: str) -> Outcome:
    """Return the outcome with another detail: the sentence, followed by the old detail in
    parentheses."""
    return replace(outcome, detail=json_lines.text(f"{sentence} ({outcome.detail})", DETAIL))


def last_line(words: str) -> str:
    """Return the last line that is not blank; empty if there is none."""
    for line in reversed(words.splitlines()):
        if line.strip():
            return line.strip()
    return ""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line_of(kind: OutcomeKind, words: str, rules: Rules) -> str:
    """Return the last line that the rules judge as this kind; if there is none, the last line that
    is not blank."""
    for line in reversed(words.splitlines()):
        if judge(line, rules) is kind:
            return line
    return last_line(words)


def last_turn(events: Sequence[AgentEvent]) -> TurnEnded | None:
    """Return the event of the last turn that ended; None if no turn ended."""
    for event in reversed(events):
        if isinstance(event, TurnEnded):
            return event
    return None


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
    time. `now`: the current time, in milliseconds since 1970. `zone`: the time zone to use if the
    message names none; None means the machine's own time zone."""
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
