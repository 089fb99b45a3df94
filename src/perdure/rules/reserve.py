"""Estimates how much more the replies that were cut off may have cost than was charged for them.
Pure; called by `attempt.budget` and by `lifecycle`.

A reply that was cut off by the agent's end is charged a best estimate, which is too low for some
replies. perdure reports that estimate. When perdure decides whether to spend more of a budget, it
also subtracts a reserve. With it, the real cost exceeds the budget by at most one reply. The
reserve assumes that every such reply was long, and cost at least as much as the most expensive
reply with a known cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from msgspec import Struct

from perdure.model import ReplyCosts


class Reserve(Struct, frozen=True, kw_only=True):
    """The reserve: how much more than their estimates the replies that were cut off may have cost,
    in US dollars."""

    replies: int = 0
    """Number of replies that may have cost more than their estimate."""
    usd: float = 0.0

    def __add__(self, other: Reserve) -> Reserve:
        return Reserve(replies=self.replies + other.replies, usd=round(self.usd + other.usd, 6))


NO_RESERVE = Reserve()


def reserve(costs: Iterable[ReplyCosts], dearest: float = 0.0) -> Reserve:
    """Return the reserve for the attempts whose reply costs are `costs`. `dearest`: a known cost of
    an expensive reply that is not in `costs`, in US dollars; each reply is assumed to cost at least
    this."""
    known = list(costs)
    dearest = max([dearest, *(each.dearest for each in known)])
    cut = chain.from_iterable(each.cut for each in known)
    beyond = [max(dearest, each.most) - each.charged for each in cut]
    beyond = [more for more in beyond if more > 0]
    return Reserve(replies=len(beyond), usd=round(sum(beyond), 6))


def may_have_cost(kept: Reserve) -> str:
    """Return a clause for people: the number of replies that were cut off, and how much more they
    may have cost."""
    if kept.replies == 1:
        replies = "1 reply that was cut off"
    else:
        replies = f"{kept.replies} replies that were cut off"
    return f"and {replies} may have cost up to ${kept.usd:.2f} more than that"
