"""Prepares the attempts of a run for display. Pure.

`timeline` makes the timeline of a run's own page: its attempts with the gaps between them, from its
report and its journal. `thread` makes the short form for lists: the attempts in a row, with marks
that show whether the conversation was continued from one attempt to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct, field

from perdure.engine.sessions.statistics import WENT_ON
from perdure.model import Attempt, OutcomeKind, Start, Verdict
from perdure.model.events import (
    CancelRequested,
    CheckpointRestored,
    ContextAdded,
    Record,
    RunFinished,
    RunOpened,
    RunQueued,
    RunReassigned,
    RunReset,
    RunTakenBack,
    SettingsChanged,
)
from perdure.model.reports import AttemptOfRun, RunReport
from perdure.rules.explanation import explained
from perdure.rules.log_line import line_of
from perdure.rules.text import one_line

NOT_ITS_FAULT = frozenset(
    {
        OutcomeKind.LOST,
        OutcomeKind.RATE_LIMITED,
        OutcomeKind.OVERLOADED,
        OutcomeKind.WRITER_CONFLICT,
    }
)


class Pip(Struct, frozen=True):
    """The mark of one attempt in a thread. `tone` is `live`, `good`, `pause` (ended for an outside
    reason), `stop` or `bad`. `joint` is the connection to the attempt before: `on` (conversation
    continued), `fresh`, `broken`, or `open` if not known yet."""

    number: int
    tone: str
    joint: str
    title: str


def thread(attempts: Sequence[Attempt]) -> list[Pip]:
    """Return the marks of these attempts, in the given order."""
    found = []
    for each in attempts:
        found.append(
            Pip(
                each.number,
                tone_of(each.outcome.kind if each.outcome else None),
                joint(each),
                _title(each),
            )
        )
    return found


def tone_of(kind: OutcomeKind | None) -> str:
    """Return the tone for an outcome. None means that the attempt has not ended."""
    if kind is None:
        return "live"
    if kind is OutcomeKind.SUCCEEDED:
        return "good"
    if kind is OutcomeKind.CANCELLED:
        return "stop"
    if kind in NOT_ITS_FAULT:
        return "pause"
    return "bad"


def joint(attempt: Attempt) -> str:
    """Return how an attempt is connected to the previous one (see `Pip.joint`), according to the
    attempt's receipt. If the attempt has no receipt yet, its planned continuation decides."""
    if attempt.receipt is None:
        asked = attempt.continuation
        if asked is None:
            return "open"
        if asked.kind in (Start.RESUME, Start.FORK):
            return "on"
        return "fresh"
    if attempt.receipt.verdict is Verdict.BROKEN:
        return "broken"
    if attempt.receipt.verdict in WENT_ON:
        return "on"
    return "fresh"


def _title(attempt: Attempt) -> str:
    ended = str(attempt.outcome.kind) if attempt.outcome else "running"
    if attempt.receipt:
        receipt = f", receipt {attempt.receipt.verdict}"
    else:
        receipt = ""
    receipt += f", work {attempt.work}" if attempt.work else ""
    return f"attempt {attempt.number} {ended}{receipt}"


BETWEEN = (
    CancelRequested,
    CheckpointRestored,
    ContextAdded,
    RunFinished,
    RunOpened,
    RunQueued,
    RunReassigned,
    RunReset,
    RunTakenBack,
    SettingsChanged,
)
SOON_MS = 1500
"""Minimum duration in milliseconds of a gap that the timeline shows. A shorter gap is shown only if
something happened in it."""


class Gap(Struct, frozen=True):
    """A period in which no attempt was running. `kind` tells what the run waited for: `backoff` (a
    set time), `person` (a person's decision) or `queue` (a free worker)."""

    kind: str
    milliseconds: int
    lines: tuple[str, ...]


class Try(Struct, frozen=True):
    """An attempt from the run's report. `whys` are the sentences that `perdure why` prints about
    the attempt. `gap` is the gap before the attempt."""

    report: AttemptOfRun
    whys: tuple[tuple[str, str], ...]
    milliseconds: int
    gap: Gap | None = None


class Timeline(Struct, frozen=True):
    """The timeline of a run. `after` is the gap after the last attempt. `strip` contains the
    sections of a line that represents the whole timeline: (kind or tone, start, end), with
    positions from 0 to 1000."""

    tries: tuple[Try, ...]
    after: Gap | None
    strip: tuple[tuple[str, float, float], ...] = field(default=())


def timeline(report: RunReport, records: Sequence[Record], now: int) -> Timeline:
    """Return the timeline of a run, from its report (`report.report_of`) and its records."""
    attempts = report.attempts
    tries: list[Try] = []
    seen = report.created
    for position, attempt in enumerate(attempts):
        gap = _gap(records, seen, attempt.started, first=position == 0)
        seen = attempt.ended or now
        previous = attempts[position - 1] if position else None
        tries.append(Try(attempt, tuple(explained(attempt, previous)), seen - attempt.started, gap))
    over = report.state not in ("queued", "running", "pending")
    if not attempts or attempts[-1].ended:
        after = _gap(records, seen, report.updated if over else now, first=not attempts)
    else:
        after = None
    if after is not None and over and not _said_between(records, seen):
        after = None
    return Timeline(
        tuple(tries),
        after,
        tuple(_strip(tries, report.created, now if not over else report.updated)),
    )


def _gap(records: Sequence[Record], since: int, until: int, *, first: bool) -> Gap | None:
    between = []
    for each in records:
        if since <= each.at <= until and each.attempt == 0 and isinstance(each.event, BETWEEN):
            between.append(each)
    told = tuple(line for line in map(_line, between) if line)
    if until - since < SOON_MS and not told:
        return None
    asked = any(isinstance(each.event, RunFinished | RunOpened | RunReset) for each in between)
    waited = any(map(_is_delayed, between))
    if asked:
        cause = "person"
    elif waited and not first:
        cause = "backoff"
    else:
        cause = "queue"
    return Gap(cause, max(0, until - since), told)


def _is_delayed(record: Record) -> bool:
    return isinstance(record.event, RunQueued) and record.event.run_after > record.at


def _said_between(records: Sequence[Record], since: int) -> bool:
    """Return whether something happened outside of an attempt after the time `since`, apart from
    the end of the run."""
    for each in records:
        is_between = isinstance(each.event, BETWEEN) and not isinstance(each.event, RunFinished)
        if each.at >= since and each.attempt == 0 and is_between:
            return True
    return False


def _line(record: Record) -> str:
    match record.event:
        case ContextAdded(version=version, message=False):
            if version > 1:
                return f"new instructions, version {version}"
            return ""
        case RunQueued(reason=reason, run_after=after) if after <= record.at:
            return one_line(reason, 200)
        case CancelRequested():
            return "asked to stop"
        case RunReassigned(before=before, after=after_agent):
            return f"handed over from {before} to {after_agent}"
        case RunReset():
            return "reset: the next attempt starts over"
        case SettingsChanged(names=names):
            return f"changed: {', '.join(names)}"
        case _:
            return line_of(record).strip()


def _strip(tries: Sequence[Try], begin: int, end: int) -> Iterator[tuple[str, float, float]]:
    whole = max(end - begin, 1)
    for each in tries:
        start = each.report.started
        if each.gap is not None:
            yield (
                each.gap.kind,
                1000 * (start - each.gap.milliseconds - begin) / whole,
                1000 * (start - begin) / whole,
            )
        outcome = each.report.outcome
        tone = tone_of(OutcomeKind(outcome.kind) if outcome is not None else None)
        yield (
            tone,
            1000 * (start - begin) / whole,
            1000 * (start + each.milliseconds - begin) / whole,
        )
