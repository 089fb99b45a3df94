"""The journal as it grows: one thread reads it for everybody who listens, so that two hundred
readers cost the database what one does.

Every record gets to every listener once, in the order of the numbers. On a database that several
hosts write to, a number can appear after a greater one: the reader waits at a gap, for as long as a
transaction may take, and then knows that it was rolled back. Who does not keep up is dropped, and
comes back with the number that it had seen last.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import field
from types import TracebackType

from perdure.engine.attempt.engine import EngineStore
from perdure.errors import PerdureError
from perdure.lateclass import dataclass
from perdure.model.codec import encode
from perdure.model.events import Record

LOOK_S = 0.2
IDLE_S = 1.0
"""So often it looks while nobody listens."""
AT_ONCE = 500
SETTLE_S = 10.0
"""A gap in the numbers is waited at for so long."""
BACK = 100
"""So many records before the newest one are looked at again at the start, for gaps."""
BEHIND_MOST = 2000
"""A listener that has so many records to take is dropped."""
LISTENERS_MOST = 256


@dataclass(frozen=True, slots=True)
class SentRecord:
    """A record, and the event that it is sent as: made once, by the thread that reads, for all who
    listen."""

    record: Record
    sent: bytes


@dataclass(eq=False)
class Listener:
    """One who listens, on an event loop. `run`: only records of this run's id; empty: all. `over`:
    it was dropped, or the service ends."""

    run: str
    since: int
    """Everything up to this number was told before it began."""
    over: bool = False
    _told: list[SentRecord] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self, patience_s: float) -> Sequence[SentRecord]:
        """What has come; after the patience nothing. Ask for `over` when it is nothing."""
        if not self._told and not self.over:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), patience_s)
        told, self._told = self._told, []
        self._news.clear()
        return told

    def tell(self, batch: Sequence[SentRecord]) -> None:
        if self.over:
            return
        everything = not self.run and batch[0].record.seq > self.since
        self._told += (
            batch
            if everything
            else [
                each
                for each in batch
                if each.record.seq > self.since and self.run in ("", each.record.run)
            ]
        )
        if len(self._told) > BEHIND_MOST:
            self._told.clear()
            self.over = True
        if self._told or self.over:
            self._news.set()

    def end(self) -> None:
        self.over = True
        self._news.set()


class Journal:
    """From `with` to its end; then all listeners are told that it is over. `listen` and `leave`
    belong to one event loop, and may be called before it begins."""

    def __init__(self, store: EngineStore, say: Callable[[str], None] = lambda line: None) -> None:
        self._store, self._say = store, say
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        """Between who begins to listen and who finds that nobody does."""
        self._wake = threading.Event()
        self._over = False
        self._gap = (0, 0.0)
        self.newest = max(0, store.newest_record() - BACK)
        """The number up to which everything was told, or was there before."""
        self._thread = threading.Thread(target=self._go, name="journal", daemon=True)

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._wake.set()
        self._thread.join()
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end)

    def listen(self, run: str = "") -> Listener | None:
        """From now on; None where there are too many already, or no more."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._over or len(self._listeners) >= LISTENERS_MOST:
                return None
            found = Listener(run, self.newest)
            self._listeners.add(found)
        self._wake.set()
        return found

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def _go(self) -> None:
        read, said = self.newest, ""
        while not self._over:
            full = False
            try:
                rows = self._store.journal(read, AT_ONCE)
                whole = self._whole(read, rows)
                if whole:
                    self._tell(whole)
                    read, full = whole[-1].seq, len(whole) == AT_ONCE
            except PerdureError:
                pass  # A database that is away for a while is asked again.
            except Exception as error:  # Nobody would notice that the only reader has gone.
                sentence = f"{type(error).__name__}: {error}"
                if said != sentence:
                    said = sentence
                    self._say(f"the live events wait for record {read + 1}: {said}")
            if not full:
                self._wake.wait(LOOK_S if self._listeners else IDLE_S)
                self._wake.clear()

    def _whole(self, read: int, rows: Sequence[Record]) -> Sequence[Record]:
        """The rows up to the first gap that is not old enough yet."""
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
        with suppress(RuntimeError):  # The loop has ended.
            self._loop.call_soon_threadsafe(self._spread, batch)

    def _spread(self, batch: Sequence[SentRecord]) -> None:
        self.newest = max(self.newest, batch[-1].record.seq)
        for each in list(self._listeners):
            each.tell(batch)

    def _end(self) -> None:
        for each in list(self._listeners):
            each.end()


async def heard(
    listener: Listener, heartbeat_s: float, known: Callable[[], Awaitable[bool]]
) -> AsyncIterator[Sequence[SentRecord]]:
    """What comes, until it is over; nothing at all as a sign of life. Whether who listens is still
    known is asked that often too, however much comes."""
    asked = time.monotonic()
    while True:
        told = await listener.next(heartbeat_s)
        if not told and listener.over:
            return
        if not told or time.monotonic() - asked >= heartbeat_s:
            if not await known():
                return
            asked = time.monotonic()
        yield told


def event(record: Record) -> bytes:
    """A record as a server-sent event. It is JSON, which has no line ends of its own."""
    return f"id: {record.seq}\ndata: {encode(record)}\n\n".encode()
