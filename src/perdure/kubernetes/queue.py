"""The queue of TaskRuns to reconcile. A TaskRun is processed soon after an event about it, and
again at the time that its last reconcile returned. Only one worker at a time processes a given
TaskRun.

A key that is put while a worker processes it is processed once more afterwards. A key that is put
twice while it waits is processed once. After a failure a key is retried with a growing delay. The
delay starts from the shortest again once the key has made progress.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from perdure.kubernetes.memory import Key

FIRST_S, LONGEST_S = 1.0, 300.0


class Queue:
    """A queue that calls `work` with each key. `work` returns a delay in seconds after which to
    call it again, or None to wait for the next `put`. An exception counts as a failure.

    Use it only in the thread of its event loop.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        failed: Callable[[Key, Exception], None],
    ) -> None:
        self._work, self._failed = work, failed
        self._due: deque[Key] = deque()
        self._waiting: set[Key] = set()
        self._busy: set[Key] = set()
        self._once_more: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._something = asyncio.Event()
        self._since: dict[Key, float] = {}
        """Time at which a worker began to process each key (monotonic clock, in seconds)."""

    def __len__(self) -> int:
        return len(self._due)

    @property
    def slowest_s(self) -> float:
        """Return how long the slowest worker has been processing its current key, in seconds; 0 if
        no worker is busy."""
        if self._since:
            return time.monotonic() - min(self._since.values())
        return 0.0

    def put(self, key: Key) -> None:
        """Schedule the key for processing as soon as a worker is free."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._busy:
            self._once_more.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._due.append(key)
            self._something.set()

    def put_later(self, key: Key, seconds: float) -> None:
        """Schedule the key for processing after this delay in seconds, or earlier if `put` is
        called."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key not in self._waiting:
            self._timers[key] = asyncio.get_running_loop().call_later(
                max(seconds, 0.0), self.put, key
            )

    def moved(self, key: Key) -> None:
        """Record that the processing of a key made progress. The key's next failure is then retried
        after the shortest delay."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._failures.pop(key, None)

    async def worker(self) -> None:
        """Process keys until cancelled. Cancellation may interrupt the processing of a key."""
        while True:
            while not self._due:
                self._something.clear()
                await self._something.wait()
            key = self._due.popleft()
            self._waiting.discard(key)
            self._busy.add(key)
            self._since[key] = time.monotonic()
            later: float | None = None
            try:
                later = await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:  # An error of one TaskRun must not stop the others.
                count = self._failures[key] = self._failures.get(key, 0) + 1
                later = min(FIRST_S * 2 ** min(count - 1, 12), LONGEST_S) * (
                    0.8 + 0.4 * random.random()
                )
                self._failed(key, error)
            finally:
                self._busy.discard(key)
                del self._since[key]
            if key in self._once_more:
                self._once_more.discard(key)
                self.put(key) if later is None or key not in self._failures else self.put_later(
                    key, later
                )
            elif later is not None:
                self.put_later(key, later)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
