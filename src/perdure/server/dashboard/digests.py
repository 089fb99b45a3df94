"""The page that summarizes what happened in a span of time, for a person who was away."""

from __future__ import annotations

from datetime import datetime, timedelta

from starlette.responses import Response

from perdure.engine.digest import digest
from perdure.errors import UsageError
from perdure.server.dashboard.visits import Visit

SPANS = {"8h": "8 hours", "1d": "a day", "yesterday": "yesterday", "7d": "a week"}
"""Spans of time that the page offers: the name to show, by the value of the parameter `since`."""
HOURS = {"8h": 8, "1d": 24, "7d": 7 * 24}
GROUPS = (
    ("needs_you", "Needs you", "asking"),
    ("failed", "Failed", "failed"),
    ("done", "Done", "succeeded"),
    ("waiting", "Waiting", "queued"),
    ("working", "Working", "running"),
)
SHOWN = 100
"""Maximum number of runs that the page shows of each group."""


def digests(visit: Visit) -> Response:
    """Show `/digest`: the runs that ended in a span of time, and those that need a person now."""
    span = visit.asked("since") or "yesterday"
    if span not in SPANS:
        raise UsageError(f"There is no span {span[:40]!r}", ", ".join(SPANS))
    found = digest(visit.desk.look, _begin(span, visit.now))
    lists = [(word, glyph, getattr(found, name)) for name, word, glyph in GROUPS]
    shown = []
    for word, glyph, runs in lists:
        if runs:
            shown.append({"word": word, "glyph": glyph, "count": len(runs), "runs": runs[:SHOWN]})
    return visit.page("digest.html", found=found, shown=shown, spans=SPANS, span=span)


def _begin(span: str, now: int) -> int:
    """Return the time at which a span begins, in milliseconds since 1970."""
    moment = datetime.fromtimestamp(now / 1000).astimezone()
    if span in HOURS:
        return now - HOURS[span] * 3_600_000
    day = (moment - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return int(day.timestamp() * 1000)
