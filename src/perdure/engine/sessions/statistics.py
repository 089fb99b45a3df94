"""Statistics of continuity over a period: how often conversations went on, why some did not, and
how many tokens continuing saved. Pure.

They use receipts and usage alone. An attempt *was to go on* if it resumed or forked a conversation,
or stands in for one that was lost, or was refused because one was lost. Tokens count as bought if
they did not come from the prompt cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from perdure.model import Attempt, OutcomeKind, Rung, SessionKey, Start, Verdict
from perdure.model.codec import plain

WENT_ON = frozenset(
    {
        Verdict.NATIVE,
        Verdict.FORKED,
        Verdict.REPAIRED,
        Verdict.COMPACTED,
        Verdict.SHORTENED,
        Verdict.REPLAYED,
    }
)

BY_RUNG = {
    Rung.PATH: "not found by its id",
    Rung.COPY: "transcript gone, own copy put back",
    Rung.REPAIRED: "transcript unusable, mended",
    Rung.CHECKPOINT: "newest copy unusable, checkpoint put back",
}
BROKEN = "went elsewhere: broken receipt"
BY_POLICY = "lost, refused by policy"
EXPIRED = "lifetime passed, new conversation"
WITH_BRIEF = "lost, new conversation with a brief"
FRESH = "lost, new conversation"
REFUSED = "refused by the agent"
CAUSES = (*BY_RUNG.values(), BROKEN, BY_POLICY, EXPIRED, WITH_BRIEF, FRESH, REFUSED)
"""All values that `fallback_of` may return, except the empty one."""


class Statistics(Struct, frozen=True, kw_only=True):
    """Statistics of the attempts that ended in a period."""

    attempts: int
    """Number of attempts that used a conversation, or were meant to."""
    begun: int
    """Number of attempts that began their conversation, because there was nothing to go on from."""
    to_go_on: int
    went_on: int
    """Number of attempts that were to go on and whose verdict is in `WENT_ON`."""
    expired: int
    """Number of attempts that were to go on and whose session had expired."""
    verdicts: Mapping[str, int]
    fallbacks: Mapping[str, int]
    """Number of attempts by cause, if the conversation did not go on from the agent's own
    transcript."""
    bought: int
    """Number of tokens that the attempts bought, input and output."""
    cached: int
    """Number of tokens that came from the prompt cache."""
    saved: int | None
    """Number of tokens saved by the successful attempts that went on, compared with the mean of the
    successful first attempts of the same agent. Negative if they used more; None if there is
    nothing to compare."""

    @property
    def success_rate(self) -> float | None:
        """Return the share of attempts that were to go on and did, from 0 to 1; None if there were
        none."""
        if self.to_go_on:
            return self.went_on / self.to_go_on
        return None

    def report(self) -> dict[str, Any]:
        """Return the object that `perdure sessions stats --json` prints."""
        rate = self.success_rate
        return {
            "schema_version": 1,
            **plain(self),
            "success_rate": None if rate is None else round(rate, 4),
        }


def statistics(ended: Iterable[tuple[SessionKey, Attempt]]) -> Statistics:
    """Return the statistics of attempts that have ended, in any order."""
    touched = [(key, attempt) for key, attempt in ended if concerns_conversation(attempt)]
    meant = [attempt for _, attempt in touched if was_to_go_on(attempt)]
    verdicts = Counter(
        str(attempt.receipt.verdict) for _, attempt in touched if attempt.receipt is not None
    )
    fallbacks = Counter(cause for attempt in meant if (cause := fallback_of(attempt)))
    return Statistics(
        attempts=len(touched),
        begun=len(touched) - len(meant),
        to_go_on=len(meant),
        went_on=sum(did_go_on(attempt) for attempt in meant),
        expired=sum(
            bool(attempt.continuation and attempt.continuation.expired) for attempt in meant
        ),
        verdicts=dict(verdicts.most_common()),
        fallbacks=dict(fallbacks.most_common()),
        bought=sum(bought_by(attempt) for _, attempt in touched),
        cached=sum(attempt.usage.cached for _, attempt in touched),
        saved=_saved(touched),
    )


def fallback_of(attempt: Attempt) -> str:
    """Return why the conversation did not go on from the agent's own transcript, in a few words;
    empty if it did."""
    asked = attempt.continuation
    if attempt.receipt is not None and attempt.receipt.verdict is Verdict.BROKEN:
        return BROKEN
    if asked is None:
        return BY_POLICY
    if asked.kind in (Start.REBUILD, Start.FRESH):
        if asked.expired:
            return EXPIRED
        if asked.kind is Start.REBUILD:
            return WITH_BRIEF
        return FRESH
    if attempt.outcome is not None and attempt.outcome.kind in (
        OutcomeKind.SESSION_MISSING,
        OutcomeKind.SESSION_BROKEN,
    ):
        return REFUSED
    return BY_RUNG.get(asked.rung, "")


def concerns_conversation(attempt: Attempt) -> bool:
    """Return whether the attempt used a conversation, so that it has a receipt, or did not start
    because one was lost."""
    if attempt.receipt is not None:
        return True
    return attempt.outcome is not None and attempt.outcome.kind in (
        OutcomeKind.CONTINUITY_LOST,
        OutcomeKind.SESSION_MISSING,
        OutcomeKind.SESSION_BROKEN,
    )


def was_to_go_on(attempt: Attempt) -> bool:
    """Return whether the attempt resumed or forked a conversation, began one in place of a lost
    one, or was refused because one was lost."""
    asked = attempt.continuation
    return asked is None or asked.kind in (Start.RESUME, Start.FORK) or bool(asked.lost_session_id)


def did_go_on(attempt: Attempt) -> bool:
    """Return whether the attempt's receipt says that the conversation went on."""
    return attempt.receipt is not None and attempt.receipt.verdict in WENT_ON


def bought_by(attempt: Attempt) -> int:
    """Return the number of tokens that the attempt bought: input that did not come from the prompt
    cache, and output."""
    return max(0, attempt.usage.input - attempt.usage.cached) + attempt.usage.output


def _saved(touched: list[tuple[SessionKey, Attempt]]) -> int | None:
    """Return the tokens saved by continuing conversations. They are computed for each agent
    separately, because tokens of different agents are not comparable."""
    total: int | None = None
    done = [
        (key.agent, attempt)
        for key, attempt in touched
        if attempt.outcome is not None and attempt.outcome.ok
    ]
    for agent in {agent for agent, _ in done}:
        cold = [
            bought_by(attempt)
            for name, attempt in done
            if name == agent and not was_to_go_on(attempt)
        ]
        warm = [
            bought_by(attempt)
            for name, attempt in done
            if name == agent and was_to_go_on(attempt) and did_go_on(attempt)
        ]
        if cold and warm:
            total = (total or 0) + round(len(warm) * sum(cold) / len(cold)) - sum(warm)
    return total
