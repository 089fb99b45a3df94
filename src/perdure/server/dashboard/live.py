"""Streams updates to open pages. Both streams get their records from the only reader of the
journal.

`/runs/NAME/live` sends new lines for the log of a run. The id of an event is the number of its last
record, so a browser that reconnects gets the lines that it missed. `/live` only signals that
something happened. An open board then reloads itself, but waits at least 1.5 seconds between two
reloads.

`lines` formats journal records as lines of the log. The pages and the streams use the same
function, so that old and new records look the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from anyio import to_thread
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from perdure.errors import PerdureError
from perdure.model.checkpoints import IMPORTED
from perdure.model.events import (
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    CheckpointTaken,
    CollisionSeen,
    ContextAdded,
    Record,
    RunReset,
    Said,
    ToolEnded,
    ToolStarted,
)
from perdure.rules.log_line import line_of
from perdure.rules.text import one_line
from perdure.server.api.events import seen_records
from perdure.server.dashboard.context import PageContext
from perdure.server.dashboard.pages import HEADERS, part
from perdure.server.guard import address_of
from perdure.server.journal import Journal, Listener, SentRecord, new_records
from perdure.server.limits import Reach, store_of
from perdure.server.principal import Principals, authenticated
from perdure.server.problems import Problem


class PageLine(Struct, frozen=True):
    """A line of the log. `kind` is its style: `said`, `tool`, `failed`, `begin`, `end`, `mark` (a
    checkpoint), `alarm` or `note`."""

    seq: int
    at: int
    kind: str
    text: str


def lines(records: Sequence[Record]) -> list[PageLine]:
    """Return the lines to show for these records. Records that do not interest a person get no
    line."""
    found = []
    for each in records:
        if text := _text(each):
            found.append(PageLine(each.seq, each.at, _kind(each.event), text))
    return found


def _text(record: Record) -> str:
    match record.event:
        case Said(text=text):
            return text.strip()
        case ToolStarted(name=name, summary=summary):
            return f"{one_line(name, 40)}  {one_line(summary, 400)}".rstrip()
        case CheckpointTaken(number=number, why=why) if why == IMPORTED:
            return f"checkpoint {number}: imported"
        case CheckpointTaken(number=number, changed=changed, untracked=new):
            return f"checkpoint {number}: {changed} changed, {new} new"
        case ContextAdded(version=version, message=False):
            return f"instructions, version {version}"
        case AttemptEnded(outcome=outcome, receipt=receipt):
            if outcome.detail:
                detail = f" ({one_line(outcome.detail, 200)})"
            else:
                detail = ""
            return f"attempt {record.attempt}: {outcome.kind}{detail}" + (
                f", receipt {receipt.verdict}" if receipt else ""
            )
        case RunReset():
            return "reset: it starts over"
        case _:
            return line_of(record).strip()


def _kind(event: AnyEvent) -> str:
    match event:
        case Said():
            return "said"
        case ToolStarted():
            return "tool"
        case ToolEnded():
            return "failed"
        case AttemptStarted():
            return "begin"
        case AttemptEnded():
            return "end"
        case CheckpointTaken():
            return "mark"
        case CollisionSeen():
            return "alarm"
        case _:
            return "note"


HEARTBEAT_S = 15.0
PAGE = 500
LARGEST = 2**53
BEGIN = b"retry: 2000\n\n"
HEARTBEAT = b": still here\n\n"
NUDGE = b"event: journal\ndata: .\n\n"

Known = Callable[[], Awaitable[bool]]


def routes(desk: PageContext, journal: Journal, principals: Principals) -> list[BaseRoute]:
    """Return the routes of the two streams, `/live` and `/runs/NAME/live`."""

    async def nudges(request: Request) -> Response:
        limits = authenticated(request, reach=Reach.LIST).limits
        if request.method == "HEAD":
            return _head()
        known = partial(_is_signed_in, desk, principals, request)
        seen = partial(seen_records, desk.look, limits, desk.limiter) if limits else None
        listener = _listener(journal)
        return _stream(_nudged(new_records(listener, HEARTBEAT_S, known, seen), listener, journal))

    async def log(request: Request) -> Response:
        who = authenticated(request, reach=Reach.RUN)
        run = await to_thread.run_sync(
            store_of(desk.look, who.limits).get, request.path_params["name"], limiter=desk.limiter
        )
        after = _after(request)
        if request.method == "HEAD":
            return _head()
        return _stream(
            _event_bytes(
                desk,
                _listener(journal, run.id),
                journal,
                after,
                partial(_is_signed_in, desk, principals, request),
            )
        )

    return [
        Route("/live", nudges, methods=["GET"]),
        Route("/runs/{name}/live", log, methods=["GET"]),
    ]


def _listener(journal: Journal, run: str = "") -> Listener:
    found = journal.listen(run)
    if found is None:
        raise Problem(503, "Too many live streams are open", "look again later")
    return found


def _stream(content: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(content, media_type="text/event-stream", headers=HEADERS)


def _head() -> Response:
    """Answer a HEAD request, without adding a listener."""
    return Response(media_type="text/event-stream", headers=HEADERS)


def _after(request: Request) -> int:
    """Return the number of the last record that the page shows; 0 if it shows none. Raises Problem
    with 400 if the number is invalid."""
    said = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    if not (said.isascii() and said.isdecimal() and len(said) < 17 and int(said) <= LARGEST):
        raise Problem(400, "Last-Event-ID is the id of an event, a whole number")
    return int(said)


async def _nudged(
    records: AsyncIterator[Sequence[SentRecord]], listener: Listener, journal: Journal
) -> AsyncIterator[bytes]:
    try:
        yield BEGIN
        async for told in records:
            yield NUDGE if told else HEARTBEAT
    except PerdureError:
        # The database is unavailable. The browser reconnects later.
        return
    finally:
        journal.leave(listener)


async def _event_bytes(
    desk: PageContext, listener: Listener, journal: Journal, after: int, known: Known
) -> AsyncIterator[bytes]:
    try:
        yield BEGIN
        while after < listener.since:
            page = await to_thread.run_sync(
                desk.look.history, listener.run, after, PAGE, limiter=desk.limiter
            )
            missed = [each for each in page if each.seq <= listener.since]
            if not missed:
                break
            after = missed[-1].seq
            yield _event(missed)
        async for told in new_records(listener, HEARTBEAT_S, known):
            # The page or the loop above may already have shown some of these records.
            if new := [each.record for each in told if each.record.seq > after]:
                yield _event(new)
            elif not told:
                yield HEARTBEAT
    except PerdureError:
        # The database is unavailable. The browser reconnects later, and gets the missed records
        # then.
        return
    finally:
        journal.leave(listener)


def _event(records: Sequence[Record]) -> bytes:
    """Return the log lines for these records as one event, followed by a signal to reload the
    timeline. If no record has a line, return only the signal."""
    text = part("log_lines.html", "lines", lines(records)).strip()
    if text:
        data = "".join(f"data: {line}\n" for line in text.split("\n"))
    else:
        data = ""
    shown = f"id: {records[-1].seq}\n{data}\n" if data else ""
    return (shown + "event: changed\ndata: .\n\n").encode()


async def _is_signed_in(desk: PageContext, principals: Principals, request: Request) -> bool:
    """Return whether the user who opened a stream is still signed in."""
    try:
        await to_thread.run_sync(
            principals.known, request.headers, address_of(request.scope), limiter=desk.limiter
        )
    except PerdureError:
        return False
    return True
