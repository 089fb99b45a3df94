"""Reads every attempt that has ended, once, in the order of their ends, and adds it up.

The first call after a start reads the whole past, a page at a time; each further one only what is
new. A transaction that was begun earlier may be seen later, so the last minute is read again each
time, and what was counted then is known.
"""

from __future__ import annotations

import time

from perdure.engine.attempt.engine import EngineStore
from perdure.telemetry.metrics.tallies import MetricTally, agent_label

PAGE = 500
OVERLAP_MS = 60_000
READ_S = 2.0
"""So long one call reads at most; the next goes on from there."""


class Following:
    """Tallies by agent. One thread at a time."""

    def __init__(self, store: EngineStore) -> None:
        self._store = store
        self._newest = 0
        self._counted: dict[tuple[str, int], int] = {}
        self._cut: tuple[int, str, int] | None = None
        """Where the last call had to leave off, if it had to: the next goes on there, however much
        ended in one moment."""
        self.tallies: dict[str, MetricTally] = {}
        self.complete = False
        """Whether all of the past is in the tallies: before that they are not to be shown."""

    def catch_up(self, read_s: float = READ_S) -> None:
        """Adds what has ended since, for at most about so many seconds. Raises StoreError."""
        until = time.monotonic() + read_s
        # An end that lies in the future was written under a clock that went wrong: what ends now
        # stands before it.
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
