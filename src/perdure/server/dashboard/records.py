"""The pages of statistics over many attempts: failures by fingerprint, and how often conversations
were continued, by day."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from itertools import chain

from starlette.responses import Response

from perdure.engine.sessions.statistics import Statistics, statistics
from perdure.model import Attempt, SessionKey
from perdure.server.dashboard.fingerprints import grouped
from perdure.server.dashboard.pages import HEADERS
from perdure.server.dashboard.visits import Visit

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
    """Return `/continuity.json`: one list for each quantity, with one item for each day. The
    quantities are the day (seconds since 1970), the number of conversations to continue, the number
    that were continued, their ratio, and the number of fallbacks by cause."""
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
    """Return the statistics of the whole span, and the statistics of each day with its beginning,
    oldest first. A day begins and ends by the server's clock. The result is cached for `FRESH_S`
    seconds, because every attempt of the span must be read."""
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
