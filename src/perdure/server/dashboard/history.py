"""Two pages about the past: the digest, which summarizes for a person who was away what happened in
a span of time, and the lines of the audit trail, with filters.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from urllib.parse import urlencode

from starlette.responses import Response

from perdure.engine.attempt.engine import EngineStore
from perdure.engine.digest import digest
from perdure.errors import NotFound, UsageError
from perdure.model.codec import encode
from perdure.server.context import run_id_of
from perdure.server.dashboard.pages import HEADERS
from perdure.server.dashboard.visits import Visit

DIGEST_SPANS = {"8h": "8 hours", "1d": "a day", "yesterday": "yesterday", "7d": "a week"}
"""Spans of time that the digest offers: the text to show, by the value of the parameter `since`."""
HOURS = {"8h": 8, "1d": 24, "7d": 7 * 24}
GROUPS = (
    ("needs_you", "Needs you", "asking"),
    ("failed", "Failed", "failed"),
    ("done", "Done", "succeeded"),
    ("waiting", "Waiting", "queued"),
    ("working", "Working", "running"),
)
SHOWN = 100
"""Maximum number of runs that the digest shows of each group."""


def digests(visit: Visit) -> Response:
    """Show `/digest`: the runs that failed or succeeded in a span of time, and the runs that now
    need a person, wait or are running."""
    span = visit.asked("since") or "yesterday"
    if span not in DIGEST_SPANS:
        raise UsageError(f"There is no span {span[:40]!r}", ", ".join(DIGEST_SPANS))
    found = digest(visit.desk.look, _begin(span, visit.now))
    lists = [(word, glyph, getattr(found, name)) for name, word, glyph in GROUPS]
    shown = []
    for word, glyph, runs in lists:
        if runs:
            shown.append({"word": word, "glyph": glyph, "count": len(runs), "runs": runs[:SHOWN]})
    return visit.page("digest.html", found=found, shown=shown, spans=DIGEST_SPANS, span=span)


def _begin(span: str, now: int) -> int:
    """Return the time at which a span begins, in milliseconds since 1970."""
    moment = datetime.fromtimestamp(now / 1000).astimezone()
    if span in HOURS:
        return now - HOURS[span] * 3_600_000
    day = (moment - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return int(day.timestamp() * 1000)


AUDIT_SPANS = {"1d": ("a day", 1), "7d": ("a week", 7), "30d": ("a month", 30), "all": ("all", 0)}
"""Spans of time that the page of the audit trail offers: a text to show and the number of days (0:
no limit), by the value of the parameter `since`."""
DAY_MS = 86_400_000
PAGE = 200
EXPORT_MOST = 10_000


def audit(visit: Visit) -> Response:
    """Show `/audit`: the lines of the audit trail from the chosen span of time, oldest first, in
    pages."""
    span, actor, run = visit.asked("since") or "7d", visit.asked("actor"), visit.asked("run")
    store, problem = visit.desk.look, ""
    after = _after(visit)
    try:
        found = store.audit(
            since=_since(span, visit.now),
            actor=actor,
            run=run_id_of(store, run),
            after=after,
            limit=PAGE + 1,
        )
    except NotFound as error:
        found, problem = [], str(error)
    names = _names(store, {each.run for each in found[:PAGE] if each.run})
    shown = []
    for each in found[:PAGE]:
        shown.append({"line": each, "of": names.get(each.run, each.run) or each.about})
    given = {"since": span, "actor": actor, "run": run}
    if len(found) > PAGE:
        more = urlencode(given | {"after": found[PAGE - 1].number})
    else:
        more = ""
    return visit.page(
        "audit.html",
        shown=shown,
        names=names,
        spans=AUDIT_SPANS,
        span=span,
        actor=actor,
        run=run,
        more=more,
        here_as_lines=urlencode(given | {"after": after}),
        problem=problem,
    )


def as_lines(visit: Visit) -> Response:
    """Return `/audit.jsonl`: a file with the lines of the audit trail that match the page's
    filters, at most `EXPORT_MOST`. Each line is one JSON object."""
    store = visit.desk.look
    found = store.audit(
        since=_since(visit.asked("since") or "7d", visit.now),
        actor=visit.asked("actor"),
        run=run_id_of(store, visit.asked("run")),
        after=_after(visit),
        limit=EXPORT_MOST,
    )
    content = "".join(f"{encode(each)}\n" for each in found).encode()
    headers = {**HEADERS, "content-disposition": 'attachment; filename="audit.jsonl"'}
    return Response(content, 200, headers, "text/plain; charset=utf-8")


def _names(store: EngineStore, runs: Iterable[str]) -> dict[str, str]:
    """Return the current names of runs, by the runs' ids. Removed runs are left out."""
    names = {}
    for run in runs:
        with suppress(NotFound):
            names[run] = store.get(run).name
    return names


def _since(span: str, now: int) -> int:
    """Return the time at which a span begins, in milliseconds since 1970. Raises UsageError for an
    unknown span."""
    if span not in AUDIT_SPANS:
        raise UsageError(f"There is no span {span[:40]!r}", ", ".join(AUDIT_SPANS))
    days = AUDIT_SPANS[span][1]
    if days:
        return now - days * DAY_MS
    return 0


def _after(visit: Visit) -> int:
    text = visit.asked("after")
    if text.isascii() and text.isdecimal() and len(text) < 19:
        return int(text)
    return 0
