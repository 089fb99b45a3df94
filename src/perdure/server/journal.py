"""Reads the journal in one thread and passes new records to all listeners. Two hundred listeners
cost the database as much as one. Used by the live streams of the API and the dashboard.

Every listener gets every record once, in the order of the numbers. If several hosts write to the
database, a record can appear after one with a greater number. The reader therefore waits at a gap
as long as a transaction can take. After that it assumes that the missing transaction was rolled
back. A listener that is too slow is dropped. Its client can then reconnect and name the last record
that it received.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType

from msgspec import Struct, field

from perdure.engine.attempt.engine import EngineStore
from perdure.errors import PerdureError
from perdure.host.rounds import Rounds
from perdure.model.codec import encode
from perdure.model.events import Record

LOOK_S = 0.2
IDLE_S = 1.0
"""Poll interval in seconds while there are no listeners."""
AT_ONCE = 500
SETTLE_S = 10.0
"""Maximum time in seconds that the reader waits for missing record numbers."""
BACK = 100
"""How many of the existing records, counted from the newest, the reader reads when it starts. There
may be gaps among them, because other transactions have not been committed yet."""
BEHIND_MOST = 2000
"""Maximum number of records that may wait for a listener. A listener that is further behind is
dropped."""
LISTENERS_MOST = 256


class SentRecord(Struct, frozen=True):
    """A record, and the same record encoded as a server-sent event. The reading thread encodes it
    once for all listeners."""

    record: Record
    sent: bytes


class Listener(Struct, eq=False):
    """Receives new records on an event loop. `run` is the id of the only run to listen to; empty
    for all runs. `over` is set when the listener was dropped or the service is stopping."""

    run: str
    since: int
    """Number of the newest record that was sent before this listener was added. The listener gets
    only later records."""
    over: bool = False
    _told: list[SentRecord] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self, patience_s: float) -> Sequence[SentRecord]:
        """Return the new records. Return an empty sequence if there are none after `patience_s`
        seconds, or if the listener has ended. In the second case `over` is set."""
        if not self._told and not self.over:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), patience_s)
        told, self._told = self._told, []
        self._news.clear()
        return told

    def tell(self, batch: Sequence[SentRecord]) -> None:
        if self.over:
            return
        if not self.run and batch[0].record.seq > self.since:
            self._told += batch
        else:
            for each in batch:
                if each.record.seq > self.since and self.run in ("", each.record.run):
                    self._told.append(each)
        if len(self._told) > BEHIND_MOST:
            self._told.clear()
            self.over = True
        if self._told or self.over:
            self._news.set()

    def end(self) -> None:
        self.over = True
        self._news.set()


class Journal:
    """Reads the journal. As a context manager it starts the thread, and on exit ends all listeners.
    `listen` and `leave` must be called on one event loop. They may be called before the thread
    starts."""

    def __init__(self, store: EngineStore, say: Callable[[str], None] = lambda line: None) -> None:
        self._store, self._say = store, say
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        """Protects `_loop` and `_listeners`, so that no listener is added while `_tell` checks
        whether there are listeners."""
        self._gap = (0, 0.0)
        self.newest = max(0, store.newest_record() - BACK)
        """Every record up to this number was sent to the listeners, or is older than this process.
        """
        self._read, self._said = self.newest, ""
        self._rounds = Rounds("journal", self._round, LOOK_S, self._failed)

    def __enter__(self) -> Journal:
        self._rounds.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rounds.stop()
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end)

    def listen(self, run: str = "") -> Listener | None:
        """Add a listener and return it. Return None if there are too many listeners, or if the
        service is stopping."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._rounds.is_over() or len(self._listeners) >= LISTENERS_MOST:
                return None
            found = Listener(run, self.newest)
            self._listeners.add(found)
        self._rounds.wake()
        return found

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def _round(self) -> float:
        """Pass the next records to the listeners. Return the pause until the next round, in
        seconds."""
        with suppress(PerdureError):  # A database error is not final: the next round tries again.
            whole = self._whole(self._read, self._store.journal(self._read, AT_ONCE))
            if whole:
                self._tell(whole)
                self._read = whole[-1].seq
            if len(whole) == AT_ONCE:
                return 0.0
        if self._listeners:
            return LOOK_S
        return IDLE_S

    def _failed(self, error: Exception) -> None:
        """Log an error of a round, unless the same error was logged last."""
        sentence = f"{type(error).__name__}: {error}"
        if sentence != self._said:
            self._said = sentence
            self._say(f"the live events wait for record {self._read + 1}: {sentence}")

    def _whole(self, read: int, rows: Sequence[Record]) -> Sequence[Record]:
        """Return the records (`rows`) that may be sent now. `read` is the number of the last record
        that was sent. Records after a gap in the numbers are held back until the missing ones
        appear, but not longer than `SETTLE_S` seconds."""
        for at, row in enumerate(rows):
            if row.seq == (rows[at - 1].seq if at else read) + 1:
                continue
            if self._gap[0] != row.seq:
                self._gap = (row.seq, time.monotonic())
            if time.monotonic() - self._gap[1] < SETTLE_S:
                return rows[:at]
        return rows

    def _tell(self, rows: Sequence[Record]) -> None:
        with self._lock:
            if self._loop is None or not self._listeners:
                self.newest = rows[-1].seq
                return
        batch = [SentRecord(row, event(row)) for row in rows]
        with suppress(RuntimeError):  # The event loop has ended, and the listeners with it.
            self._loop.call_soon_threadsafe(self._spread, batch)

    def _spread(self, batch: Sequence[SentRecord]) -> None:
        self.newest = max(self.newest, batch[-1].record.seq)
        for each in list(self._listeners):
            each.tell(batch)

    def _end(self) -> None:
        for each in list(self._listeners):
            each.end()


async def new_records(
    listener: Listener,
    heartbeat_s: float,
    known: Callable[[], Awaitable[bool]],
    seen: Callable[[Sequence[SentRecord]], Awaitable[Sequence[SentRecord]]] | None = None,
) -> AsyncIterator[Sequence[SentRecord]]:
    """Yield new records until the listener ends, and an empty sequence as a heartbeat every
    `heartbeat_s` seconds. At the same interval, `known` checks whether the client is still
    authenticated, even if records arrive all the time. If it is not, nothing more is yielded.

    `seen` returns the records that the client may see. If it returns none of the new records,
    nothing is yielded for them. So the client cannot notice hidden records, not even by the time at
    which something is sent.
    """
    asked = time.monotonic()
    while True:
        told = await listener.next(max(0.0, asked + heartbeat_s - time.monotonic()))
        if not told and listener.over:
            return
        is_due = not told or time.monotonic() - asked >= heartbeat_s
        if is_due:
            if not await known():
                return
            asked = time.monotonic()
        if told and seen is not None:
            told = await seen(told)
        if told or is_due:
            yield told


def event(record: Record) -> bytes:
    """Return a record encoded as a server-sent event. The JSON of a record contains no line
    breaks."""
    return f"id: {record.seq}\ndata: {encode(record)}\n\n".encode()
