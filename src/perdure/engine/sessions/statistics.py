"""Statistics of continuity over a period: how often conversations continued, why some did not, and
how many tokens were saved by continuing. Pure.

Only receipts and usage are read. In the names of this module, *to go on* says that an attempt was
supposed to continue a conversation: it resumed or forked the conversation, replaced it because it
was lost, or was refused because it was lost. *Bought* tokens are those that did not come from the
prompt cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from perdure.model import Attempt, OutcomeKind, Rung, SessionKey, Start, Verdict

if TYPE_CHECKING:
    from perdure.model.session_reports import StatisticsReport

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
"""All values that `fallback_of` may return, except the empty text."""


class Statistics(Struct, frozen=True, kw_only=True):
    """Statistics of the attempts that ended in a period."""

    attempts: int
    """Number of attempts that used a conversation, or failed because their conversation was lost.
    """
    begun: int
    """Number of attempts that began a conversation because none existed yet."""
    to_go_on: int
    went_on: int
    """Number of attempts that were supposed to continue a conversation and whose receipt says that
    they did (`WENT_ON`)."""
    expired: int
    """Number of attempts that were supposed to continue a conversation whose session had
    expired."""
    verdicts: Mapping[Verdict, int]
    fallbacks: Mapping[str, int]
    """Number of attempts by cause (see `CAUSES`). Counts attempts that were supposed to continue a
    conversation and did not continue it from the agent's own transcript."""
    bought: int
    """Number of input and output tokens that did not come from the prompt cache."""
    cached: int
    """Number of tokens that came from the prompt cache."""
    saved: int | None
    """Number of tokens saved by continuing conversations; None if there is nothing to compare. A
    successful attempt that continued a conversation is compared with the mean of the agent's
    successful attempts that began one. Negative if continuing used more tokens."""

    @property
    def success_rate(self) -> float | None:
        """Return `went_on` divided by `to_go_on`: the share, from 0 to 1, of successful
        continuations. Return None if no attempt was supposed to continue a conversation."""
        if self.to_go_on:
            return self.went_on / self.to_go_on
        return None

    def report(self) -> StatisticsReport:
        """Return the object that `perdure sessions stats --json` prints."""
        from perdure.model.session_reports import StatisticsReport

        rate = self.success_rate
        return StatisticsReport(
            schema_version=1,
            attempts=self.attempts,
            begun=self.begun,
            to_go_on=self.to_go_on,
            went_on=self.went_on,
            expired=self.expired,
            verdicts=dict(self.verdicts),
            fallbacks=dict(self.fallbacks),
            bought=self.bought,
            cached=self.cached,
            saved=self.saved,
            success_rate=None if rate is None else round(rate, 4),
        )


def statistics(ended: Iterable[tuple[SessionKey, Attempt]]) -> Statistics:
    """Return the statistics of attempts that have ended. Their order does not matter."""
    touched = []
    for key, attempt in ended:
        if concerns_conversation(attempt):
            touched.append((key, attempt))
    attempts = [attempt for _, attempt in touched]
    meant = list(filter(should_continue, attempts))
    receipts = [attempt.receipt for attempt in attempts if attempt.receipt is not None]
    verdicts = Counter(receipt.verdict for receipt in receipts)
    fallbacks = Counter(filter(None, map(fallback_of, meant)))
    return Statistics(
        attempts=len(touched),
        begun=len(touched) - len(meant),
        to_go_on=len(meant),
        went_on=sum(map(did_continue, meant)),
        expired=sum(map(_is_expired, meant)),
        verdicts=dict(verdicts.most_common()),
        fallbacks=dict(fallbacks.most_common()),
        bought=sum(map(bought_by, attempts)),
        cached=sum(attempt.usage.cached for attempt in attempts),
        saved=_saved(touched),
    )


def fallback_of(attempt: Attempt) -> str:
    """Return why the conversation did not continue from the agent's own transcript, as a value of
    `CAUSES`; empty if it did."""
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
    """Return whether the attempt used a conversation, or failed because its conversation was lost.
    An attempt that used one has a receipt."""
    if attempt.receipt is not None:
        return True
    return attempt.outcome is not None and attempt.outcome.kind in (
        OutcomeKind.CONTINUITY_LOST,
        OutcomeKind.SESSION_MISSING,
        OutcomeKind.SESSION_BROKEN,
    )


def should_continue(attempt: Attempt) -> bool:
    """Return whether the attempt was supposed to continue a conversation. This is so if the attempt
    resumed or forked a conversation, began one in place of a lost one, or was refused because a
    conversation was lost."""
    asked = attempt.continuation
    return asked is None or asked.kind in (Start.RESUME, Start.FORK) or bool(asked.lost_session_id)


def did_continue(attempt: Attempt) -> bool:
    """Return whether the conversation continued, according to the attempt's receipt."""
    return attempt.receipt is not None and attempt.receipt.verdict in WENT_ON


def bought_by(attempt: Attempt) -> int:
    """Return the number of tokens that were charged at the full price: output, and input that did
    not come from the prompt cache."""
    return max(0, attempt.usage.input - attempt.usage.cached) + attempt.usage.output


def _is_expired(attempt: Attempt) -> bool:
    return bool(attempt.continuation and attempt.continuation.expired)


def _saved(touched: list[tuple[SessionKey, Attempt]]) -> int | None:
    """Return the number of tokens saved by continuing conversations; None if there is nothing to
    compare. Attempts are compared only with those of the same agent, because agents count tokens
    differently."""
    total: int | None = None
    done = []
    for key, attempt in touched:
        if attempt.outcome is not None and attempt.outcome.ok:
            done.append((key.agent, attempt))
    for agent in {agent for agent, _ in done}:
        cold = []
        for name, attempt in done:
            if name == agent and not should_continue(attempt):
                cold.append(bought_by(attempt))
        warm = []
        for name, attempt in done:
            if name == agent and should_continue(attempt) and did_continue(attempt):
                warm.append(bought_by(attempt))
        if cold and warm:
            total = (total or 0) + round(len(warm) * sum(cold) / len(cold)) - sum(warm)
    return total
