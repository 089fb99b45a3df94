"""Stores deliveries of many requests in few transactions. Deliveries that arrive during a
transaction are stored together in the next one.

A separate thread does the work, so a slow disk delays only the requests that wait for it. A request
is answered only after the commit of its delivery.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from msgspec import Struct

from perdure.errors import StoreError
from perdure.model.forge.deliveries import Accepted, Arrived

MOST = 100
"""Maximum number of deliveries in a transaction. `MOST_BYTES` also limits a transaction."""
MOST_BYTES = 32 * 1024**2


class _Waiting(Struct, frozen=True):
    arrived: Arrived
    answer: asyncio.Future[Accepted]
    loop: asyncio.AbstractEventLoop


class Writer:
    """Writes deliveries to the store. As a context manager it starts its thread, and on exit writes
    what is pending. `kept` is called after each commit that stored a new delivery."""

    def __init__(
        self,
        accept: Callable[[Sequence[Arrived]], Sequence[Accepted]],
        kept: Callable[[], None] = lambda: None,
    ) -> None:
        self._accept, self._kept = accept, kept
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._go, name="inbox", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()

    async def keep(self, arrived: Arrived) -> Accepted:
        """Store a delivery and wait until it is durable. Return its number and whether it was new.
        Raises the same errors as the store."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(arrived, loop.create_future(), loop)
        self._queue.put(waiting)
        return await waiting.answer

    def _go(self) -> None:
        last = False
        while not last:
            batch, size = [], 0
            waiting = self._queue.get()
            while waiting is not None:
                batch.append(waiting)
                size += len(waiting.arrived.body)
                if len(batch) == MOST or size > MOST_BYTES:
                    break
                try:
                    waiting = self._queue.get_nowait()
                except queue.Empty:
                    break
            last = waiting is None
            if batch:
                self._write(batch)

    def _write(self, batch: list[_Waiting]) -> None:
        try:
            found = self._accept([each.arrived for each in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreError):
                # One delivery of the batch probably cannot be stored, so store each one separately.
                for each in batch:
                    self._write([each])
                return
            _tell(batch, error)
            return
        _tell(batch, found)
        if any(each.new for each in found):
            self._kept()


def _tell(batch: list[_Waiting], found: Sequence[Accepted] | Exception) -> None:
    def tell() -> None:
        for at, each in enumerate(batch):
            if each.answer.done():
                continue  # The sender has disconnected and waits no longer.
            if isinstance(found, Exception):
                each.answer.set_exception(found)
            else:
                each.answer.set_result(found[at])

    # The event loop was closed during the transaction, so no request waits for an answer.
    with suppress(RuntimeError):
        batch[0].loop.call_soon_threadsafe(tell)
