"""Estimates what replies that were cut off may have cost beyond what was charged for them. Pure;
called by `attempt.budget` and by `lifecycle`.

A reply that an agent's end cut off is charged a best estimate, which is too low for some replies.
What perdure reports stays that estimate. The decision to spend more of a budget also keeps a
reserve, so that the real cost stays within the budget and one reply: every such reply is taken to
have been long, and to have cost at least as much as the dearest reply whose figure is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from msgspec import Struct

from perdure.model import ReplyCosts


class Reserve(Struct, frozen=True, kw_only=True):
    """The possible cost of replies that were cut off, beyond their estimates, in dollars."""

    replies: int = 0
    """Number of replies that may have cost more."""
    usd: float = 0.0

    def __add__(self, other: Reserve) -> Reserve:
        return Reserve(replies=self.replies + other.replies, usd=round(self.usd + other.usd, 6))


NO_RESERVE = Reserve()


def reserve(costs: Iterable[ReplyCosts], dearest: float = 0.0) -> Reserve:
    """Return the reserve for the attempts with these costs. `dearest`: the cost of the dearest
    reply since, in dollars."""
    known = list(costs)
    dearest = max([dearest, *(each.dearest for each in known)])
    cut = chain.from_iterable(each.cut for each in known)
    beyond = [max(dearest, each.most) - each.charged for each in cut]
    beyond = [more for more in beyond if more > 0]
    return Reserve(replies=len(beyond), usd=round(sum(beyond), 6))


def may_have_cost(kept: Reserve) -> str:
    """Return half a sentence for people: how many replies, and how much more."""
    if kept.replies == 1:
        replies = "1 reply that was cut off"
    else:
        replies = f"{kept.replies} replies that were cut off"
    return f"and {replies} may have cost up to ${kept.usd:.2f} more than that"
