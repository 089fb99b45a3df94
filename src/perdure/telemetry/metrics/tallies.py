"""What ended attempts add up to, agent by agent. Pure; `follower` calls it once for each
attempt."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import field

from perdure.engine.sessions.statistics import (
    bought_by,
    concerns_conversation,
    did_go_on,
    fallback_of,
    was_to_go_on,
)
from perdure.lateclass import dataclass
from perdure.model import Attempt

BOUNDS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""The upper ends of the buckets in which the time of an attempt is counted; one more has what took
longer."""
NO_RECEIPT = "none"
AGENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def agent_label(name: str) -> str:
    """An agent's name as a label: a run from another machine may name anything."""
    return name if AGENT.fullmatch(name) else "other"


@dataclass(slots=True)
class MetricTally:
    """Of one agent, since the store's beginning."""

    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    """Receipts, of all attempts."""
    resumes: Counter[str] = field(default_factory=Counter)
    """Attempts that were to go on, by the verdict of their receipt; `none` where there is none."""
    fallbacks: Counter[str] = field(default_factory=Counter)
    fresh_tokens: int = 0
    """Input that did not come from the prompt cache."""
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    cold: int = 0
    """Successful attempts that began a conversation, and below what they bought."""
    cold_tokens: int = 0
    warm: int = 0
    """Successful attempts that went on, and below what they bought."""
    warm_tokens: int = 0

    def add(self, attempt: Attempt) -> None:
        """Counts an attempt that has ended."""
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
        meant = was_to_go_on(attempt)
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
        elif did_go_on(attempt):
            self.warm += 1
            self.warm_tokens += bought_by(attempt)

    @property
    def saved(self) -> int | None:
        """Tokens that the successful attempts which went on did not buy, against the mean of the
        successful first attempts; None where there is nothing to compare."""
        return (
            round(self.warm * self.cold_tokens / self.cold) - self.warm_tokens
            if self.cold and self.warm
            else None
        )
