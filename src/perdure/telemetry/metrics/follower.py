"""Reads every attempt that has ended, in the order in which they ended, and adds each to the totals
of its agent once. Used by `exposition`.

`MetricTally` has the totals of one agent. `AttemptTallies` reads the attempts. Its first call after
a start reads all attempts, page by page. Each later call reads only new ones. A transaction that
began earlier may become visible later, so the last minute is read again each time. Attempts that
were already counted are skipped.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter

from msgspec import Struct, field

from perdure.engine.attempt.engine import EngineStore
from perdure.engine.sessions.statistics import (
    bought_by,
    concerns_conversation,
    did_continue,
    fallback_of,
    should_continue,
)
from perdure.model import Attempt

BOUNDS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Upper bounds of the histogram buckets for the duration of an attempt, in seconds. One more bucket
counts longer attempts."""
NO_RECEIPT = "none"
AGENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def agent_label(name: str) -> str:
    """Return an agent's name as a label value, or `other` if the name is invalid. In a run that was
    imported from another machine, the agent's name may be any text."""
    if AGENT.fullmatch(name):
        return name
    return "other"


class MetricTally(Struct):
    """Totals of one agent since the store was created."""

    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    """Number of receipts of all attempts, by verdict."""
    resumes: Counter[str] = field(default_factory=Counter)
    """Number of attempts that were expected to continue a conversation, by the verdict of their
    receipt. The key is `none` for attempts without a receipt."""
    fallbacks: Counter[str] = field(default_factory=Counter)
    fresh_tokens: int = 0
    """Number of input tokens that did not come from the prompt cache."""
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    cold: int = 0
    """Number of successful attempts that began a conversation. The next field is the number of
    tokens for which they were charged the full price."""
    cold_tokens: int = 0
    warm: int = 0
    """Number of successful attempts that continued a conversation. The next field is the number of
    tokens for which they were charged the full price."""
    warm_tokens: int = 0

    def add(self, attempt: Attempt) -> None:
        """Add an attempt that has ended to the totals."""
        assert attempt.outcome is not None and attempt.ended is not None
        self.outcomes[attempt.outcome.kind] += 1
        if attempt.receipt is not None:
            self.verdicts[attempt.receipt.verdict] += 1
        took_s = max(0, attempt.ended - attempt.started) / 1000
        self.seconds += took_s
        self.buckets[bisect_left(BOUNDS_S, took_s)] += 1
        usage = attempt.usage
        self.fresh_tokens += max(0, usage.input - usage.cached)
        self.cached_tokens += max(0, usage.cached)
        self.output_tokens += max(0, usage.output)
        self.cost_usd += max(0.0, usage.cost_usd)
        if concerns_conversation(attempt):
            self._continuity(attempt)

    def _continuity(self, attempt: Attempt) -> None:
        meant = should_continue(attempt)
        if meant:
            self.resumes[
                attempt.receipt.verdict if attempt.receipt is not None else NO_RECEIPT
            ] += 1
            if cause := fallback_of(attempt):
                self.fallbacks[cause] += 1
        if attempt.outcome is None or not attempt.outcome.ok:
            return
        if not meant:
            self.cold += 1
            self.cold_tokens += bought_by(attempt)
        elif did_continue(attempt):
            self.warm += 1
            self.warm_tokens += bought_by(attempt)

    @property
    def saved(self) -> int | None:
        """Number of tokens that were saved by continuing conversations. Attempts that continued a
        conversation are compared with the mean of those that began one. Only successful attempts
        count. None if one of the two groups is empty."""
        if self.cold and self.warm:
            return round(self.warm * self.cold_tokens / self.cold) - self.warm_tokens
        return None


PAGE = 500
OVERLAP_MS = 60_000
READ_S = 2.0
"""Maximum duration of one call of `catch_up`, in seconds. The next call continues where this one
stopped."""


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
        for address, ended in list(self._counted.items()):
            if ended < oldest:
                del self._counted[address]
