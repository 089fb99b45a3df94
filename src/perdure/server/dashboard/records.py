"""The pages of statistics over many attempts: failures in groups, and how often conversations were
continued, by day. Failures with the same agent, outcome and message are one group. Numbers, ids,
URLs and paths in messages are ignored for this.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

from msgspec import Struct, field
from starlette.responses import Response

from perdure.engine.sessions.statistics import Statistics, statistics
from perdure.model import Attempt, OutcomeKind, RunState, SessionKey
from perdure.protocols import FailedAttempt
from perdure.rules.lifecycle import NEEDS_PERSON
from perdure.rules.text import one_line
from perdure.server.dashboard.pages import HEADERS
from perdure.server.dashboard.visits import Visit

VARYING = (
    (re.compile(r"https?://[^\s\"'<>]+"), "<url>"),
    (
        re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE),
        "<id>",
    ),
    (re.compile(r"(?<![\w.])(?:~|\.{1,2})?/[\w.@+~-]+(?:/[\w.@+~-]+)*"), "<path>"),
    (re.compile(r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,64}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "<n>"),
)
RUNS = 8
"""Maximum number of runs that a group of failures names."""
SUGGESTED = {
    **NEEDS_PERSON,
    OutcomeKind.RATE_LIMITED: (
        "it waits for the end of the limit by itself; account_jobs limits the agents that run on "
        "one account"
    ),
    OutcomeKind.OVERLOADED: "the model's service was overloaded; it is tried again by itself",
    OutcomeKind.LOST: (
        "the supervisor or the machine died; the next attempt continues where it stopped"
    ),
    OutcomeKind.TIMED_OUT: "give it more time (timeout), or a smaller task",
    OutcomeKind.STALLED: (
        "see what it waited for: perdure logs; raise stall for tools with long silences"
    ),
    OutcomeKind.VERIFY_FAILED: (
        "the task's own check fails: look at its output in the run's timeline"
    ),
    OutcomeKind.SESSION_MISSING: (
        "the agent's own clean-up may remove conversations: perdure doctor shows how to turn it off"
    ),
    OutcomeKind.SESSION_BROKEN: (
        "perdure sessions check shows the damage of the transcript and its repair"
    ),
    OutcomeKind.CONTINUITY_LOST: (
        "perdure why shows where the conversation went; the policy disclose continues with a brief"
    ),
    OutcomeKind.CONTEXT_EXHAUSTED: ("set when_full to compact or roll-over, to avoid this"),
    OutcomeKind.WRITER_CONFLICT: "another program has the conversation open: end it there",
    OutcomeKind.DENIED: "allow the tool (permissions, or the agent's own settings), then retry",
    OutcomeKind.REFUSED: "rephrase it (perdure update), or choose another model",
    OutcomeKind.TRUNCATED: "the model's answer was cut off or empty; the run continues by itself",
    OutcomeKind.MAX_TURNS: "the agent's own limit of turns was reached: raise it, or retry",
}
"""Advice by kind of outcome. Kinds that are not listed have none."""


class Failure(Struct):
    """A group of failed attempts. `runs` has the state of some runs of the group, by the name of
    the run. `resolved` is the number of runs of the group that have succeeded after the failure."""

    id: str
    agent: str
    kind: OutcomeKind
    message: str
    first: int
    last: int
    count: int = 0
    runs: dict[str, RunState] = field(default_factory=dict)
    resolved: int = 0

    @property
    def suggestion(self) -> str:
        return SUGGESTED.get(self.kind, "")


def normal(message: str) -> str:
    """Return a message with its varying parts (numbers, ids, paths) replaced by placeholders such
    as `<n>`."""
    text = one_line(message, 300)
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text


def grouped(failed: Sequence[FailedAttempt]) -> list[Failure]:
    """Return the attempts in groups, the group with the newest failure first. Attempts that a
    person stopped do not count as failures."""
    groups: dict[str, Failure] = {}
    seen: dict[str, set[str]] = {}
    for each in failed:
        outcome = each.attempt.outcome
        if outcome is None or outcome.kind is OutcomeKind.CANCELLED:
            continue
        message = normal(outcome.detail)
        key = hashlib.sha256(f"{each.agent}\0{outcome.kind}\0{message}".encode()).hexdigest()[:12]
        at = each.attempt.ended or each.attempt.started
        group = groups.setdefault(key, Failure(key, each.agent, outcome.kind, message, at, at))
        group.first, group.last, group.count = (
            min(group.first, at),
            max(group.last, at),
            group.count + 1,
        )
        if each.attempt.run not in seen.setdefault(key, set()):
            seen[key].add(each.attempt.run)
            group.resolved += each.state is RunState.SUCCEEDED
            if each.name and len(group.runs) < RUNS:
                group.runs[each.name] = each.state
    return sorted(groups.values(), key=lambda group: -group.last)


DAY_MS = 86_400_000
SPANS = {"1d": 1, "7d": 7, "30d": 30, "90d": 90}
FAILED_MOST = 5000
FRESH_S = 20.0


def _span(visit: Visit, usual: str) -> tuple[str, int]:
    name = visit.asked("span") if visit.asked("span") in SPANS else usual
    return name, visit.now - SPANS[name] * DAY_MS


def failures(visit: Visit) -> Response:
    """Show `/failures`, the failed attempts in groups."""
    span, since = _span(visit, "7d")
    failed = visit.desk.look.failed_attempts(since, FAILED_MOST)
    return visit.page(
        "failures.html",
        groups=grouped(failed),
        span=span,
        spans=list(SPANS),
        count=len(failed),
        most=FAILED_MOST,
    )


def continuity(visit: Visit) -> Response:
    """Show `/continuity`: how often conversations were continued, as numbers and as a table. In the
    browser, `chart.js` draws the data of `/continuity.json`."""
    span, since = _span(visit, "30d")
    whole, days = _measured(visit, span, since)
    return visit.page(
        "continuity.html", whole=whole, days=list(reversed(days)), span=span, spans=list(SPANS)
    )


def continuity_json(visit: Visit) -> Response:
    """Return `/continuity.json`: one list for each quantity, with one item for each day on which an
    attempt ended. The quantities are the day (seconds since 1970), the number of conversations to
    continue, the number that were continued, their ratio, and for each cause the number of
    fallbacks."""
    span, since = _span(visit, "30d")
    _, days = _measured(visit, span, since)
    measured = [found for _, found in days]
    rates = [found.success_rate for found in measured]
    fallbacks = {}
    for cause in sorted(set(chain.from_iterable(found.fallbacks for found in measured))):
        fallbacks[cause] = [found.fallbacks.get(cause, 0) for found in measured]
    columns = {
        "schema_version": 1,
        "at": [at // 1000 for at, _ in days],
        "to_go_on": [found.to_go_on for found in measured],
        "went_on": [found.went_on for found in measured],
        "rate": [None if rate is None else round(rate, 4) for rate in rates],
        "fallbacks": fallbacks,
    }
    return Response(json.dumps(columns), media_type="application/json", headers=HEADERS)


def _measured(
    visit: Visit, span: str, since: int
) -> tuple[Statistics, list[tuple[int, Statistics]]]:
    """Return the statistics of the whole span, and a list with the beginning (ms since 1970) and
    the statistics of each day, oldest first. Days on which no attempt ended are left out. A day
    begins and ends by the server's clock. The result is cached for `FRESH_S` seconds, because every
    attempt of the span must be read."""
    found: tuple[Statistics, list[tuple[int, Statistics]]]
    found = visit.desk.measured.now(
        f"continuity {span}", lambda: _days(visit, since), FRESH_S, visit.now
    )
    return found


def _days(visit: Visit, since: int) -> tuple[Statistics, list[tuple[int, Statistics]]]:
    ended = visit.desk.look.ended(since, visit.now + 1)
    by_day: dict[int, list[tuple[SessionKey, Attempt]]] = defaultdict(list)
    for key, attempt in ended:
        by_day[_day(attempt.ended or attempt.started)].append((key, attempt))
    return statistics(ended), [(day, statistics(by_day[day])) for day in sorted(by_day)]


def _day(ms: int) -> int:
    """Return the beginning of the day that contains the time `ms`. Both times are in milliseconds
    since 1970."""
    here = time.localtime(ms / 1000)
    return int(time.mktime((here.tm_year, here.tm_mon, here.tm_mday, 0, 0, 0, 0, 0, -1)) * 1000)
