"""Reads every attempt that has ended, in order of the ends, and adds each to the tallies once. Used
by `exposition`.

The first call after a start reads all attempts, page by page. Each later call reads only new ones.
A transaction that began earlier may become visible later, so the last minute is read again each
time. Attempts that were already counted are skipped.
"""

from __future__ import annotations

import time

from perdure.engine.attempt.engine import EngineStore
from perdure.telemetry.metrics.tallies import MetricTally, agent_label

PAGE = 500
OVERLAP_MS = 60_000
READ_S = 2.0
"""Maximum duration of one call, in seconds. The next call continues from there."""


class AttemptTallies:
    """Keeps the totals of the attempts that have ended, by agent. Not thread-safe."""

    def __init__(self, store: EngineStore) -> None:
        self._store = store
        self._newest = 0
        self._counted: dict[tuple[str, int], int] = {}
        self._cut: tuple[int, str, int] | None = None
        """Position in the list of ended attempts at which the last call ran out of time; None if it
        read all of them. The next call continues exactly there, even if many attempts ended in the
        same millisecond."""
        self.tallies: dict[str, MetricTally] = {}
        self.complete = False
        """Whether the tallies include all attempts since the store was created. Incomplete tallies
        must not be shown."""

    def catch_up(self, read_s: float = READ_S) -> None:
        """Add the attempts that have ended since the last call, for about `read_s` seconds at most.
        Raises StoreError."""
        until = time.monotonic() + read_s
        # The clock of a host was wrong if it stored an end in the future. That end must not become
        # the position from which the next call continues, because attempts that end now sort before
        # it.
        oldest = max(0, min(self._newest, self._store.now()) - OVERLAP_MS)
        after, self._cut = self._cut or (oldest, "", 0), None
        while True:
            page = self._store.ended_after(*after, limit=PAGE)
            for key, attempt in page:
                assert attempt.ended is not None
                address = (attempt.run, attempt.number)
                if address not in self._counted:
                    self._counted[address] = attempt.ended
                    self.tallies.setdefault(agent_label(key.agent), MetricTally()).add(attempt)
                after = (attempt.ended, attempt.run, attempt.number)
                self._newest = max(self._newest, attempt.ended)
            if len(page) < PAGE:
                self.complete = True
                break
            if time.monotonic() > until:
                self._cut = after
                break
        self._counted = {
            address: ended for address, ended in self._counted.items() if ended >= oldest
        }
