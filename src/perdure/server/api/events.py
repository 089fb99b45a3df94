"""Streams the journal as server-sent events (html.spec.whatwg.org, "Server-sent events"), for all
runs or for one.

Each event is a record as `perdure logs --json` prints it; its id is the record's number. A client
that reconnects with `Last-Event-ID` gets all later records, each once and in order. A client that
is too slow, or whose token has become invalid, is disconnected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from perdure.engine.attempt.engine import EngineStore
from perdure.errors import PerdureError
from perdure.model.events import Record
from perdure.rules.access import AccessLimits
from perdure.server.api.forms import LARGEST
from perdure.server.api.verbs import ApiContext
from perdure.server.context import Parts
from perdure.server.guard import address_of
from perdure.server.journal import Listener, SentRecord, event, new_records
from perdure.server.limits import Reach, store_of, visible
from perdure.server.principal import authenticated
from perdure.server.problems import Problem

HEARTBEAT_S = 15.0
PAGE = 500
BEGIN = b"retry: 2000\n\n"
"""First bytes of a stream. They tell a browser to reconnect 2,000 ms after the connection was lost.
"""
HEARTBEAT = b": still here\n\n"


def stream(parts: Parts, room: ApiContext) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint that streams the records of all runs, or of the run that the address
    names. If the request has neither `Last-Event-ID` nor `?after=`, the stream of all runs begins
    with new records, and the stream of one run with the run's first record."""

    async def streamed(request: Request) -> Response:
        ref = request.path_params.get("run", "")
        who = authenticated(request, reach=Reach.RUN if ref else Reach.LIST)
        store = store_of(parts.store, who.limits)
        if ref:
            run = (await to_thread.run_sync(store.get, ref, limiter=room.limiter)).id
        else:
            run = ""
        after = _after(request)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        newest = 0
        if after >= 0:
            newest = await to_thread.run_sync(parts.store.newest_record, limiter=room.limiter)
        listener = parts.journal.listen(run)
        if listener is None:
            raise Problem(503, "Too many live streams are open", "try again later")
        if after >= 0:
            # The client's number may come from another database, where the numbers may be greater
            # than here. The number is lowered to the newest one here, so that the client gets new
            # records.
            begin = min(after, max(newest, listener.since))
        elif run:
            begin = 0
        else:
            begin = listener.since
        return StreamingResponse(
            _event_bytes(parts, room, request, listener, begin, who.limits),
            media_type="text/event-stream",
        )

    return streamed


def _after(request: Request) -> int:
    """Return the number of the last record that the client has seen; -1 for a new client. Raises
    Problem with 400 if the number is invalid."""
    said = request.headers.get("last-event-id") or request.query_params.get("after") or "-1"
    if said != "-1" and not (
        said.isascii() and said.isdecimal() and len(said) < 17 and int(said) <= LARGEST
    ):
        raise Problem(400, "Last-Event-ID is the id of an event, a whole number")
    return int(said)


async def _event_bytes(
    parts: Parts,
    room: ApiContext,
    request: Request,
    listener: Listener,
    after: int,
    limits: AccessLimits,
) -> AsyncIterator[bytes]:
    try:
        yield BEGIN
        while after < listener.since:
            page = await to_thread.run_sync(
                partial(_page, parts, listener.run, after), limiter=room.limiter
            )
            page = [record for record in page if record.seq <= listener.since]
            if not page:
                break
            after = page[-1].seq
            shown = await to_thread.run_sync(
                visible, page, limits, parts.store, limiter=room.limiter
            )
            yield b"".join(map(event, shown))
        known = partial(_still_known, parts, room, request)
        seen = partial(seen_records, parts.store, limits, room.limiter) if limits else None
        async for told in new_records(listener, HEARTBEAT_S, known, seen):
            # The client may have read some of these records before it reconnected.
            new = [each.sent for each in told if each.record.seq > after]
            if new or not told:
                yield b"".join(new) or HEARTBEAT
    except PerdureError:
        # The database is unavailable. The client reconnects later, and gets the missed records
        # then.
        return
    finally:
        parts.journal.leave(listener)


async def seen_records(
    store: EngineStore, limits: AccessLimits, limiter: CapacityLimiter, told: Sequence[SentRecord]
) -> Sequence[SentRecord]:
    """Return the records whose runs are within the client's access limits."""
    records = [each.record for each in told]
    shown = await to_thread.run_sync(visible, records, limits, store, limiter=limiter)
    numbers = {each.seq for each in shown}
    return [each for each in told if each.record.seq in numbers]


def _page(parts: Parts, run: str, after: int) -> list[Record]:
    return list(parts.store.history(run, after, PAGE) if run else parts.store.journal(after, PAGE))


async def _still_known(parts: Parts, room: ApiContext, request: Request) -> bool:
    try:
        await to_thread.run_sync(
            parts.principals.known, request.headers, address_of(request.scope), limiter=room.limiter
        )
    except PerdureError:
        return False
    return True
