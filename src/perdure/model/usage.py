"""Usage: tokens and money, and how full a conversation's window is."""

from __future__ import annotations

from msgspec import Struct


class Usage(Struct, frozen=True):
    """Tokens and dollars. `cached` and `cache_write` are parts of `input`, as the model's service
    reports them.

    `estimated`: perdure counted the tokens or estimated the price. The agent has not reported its
    final figure (it is still running, or was killed), or it reports no dollars.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    cost_usd: float = 0.0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cached + other.cached,
            self.cache_write + other.cache_write,
            round(self.cost_usd + other.cost_usd, 6),
            self.estimated or other.estimated,
        )

    def since(self, before: Usage) -> Usage:
        """Return the usage since `before`, never negative. If a counter went down, it was
        restarted, so its whole value is returned."""
        if self.input < before.input or self.output < before.output:
            return self
        return Usage(
            self.input - before.input,
            self.output - before.output,
            max(0, self.cached - before.cached),
            max(0, self.cache_write - before.cache_write),
            round(max(0.0, self.cost_usd - before.cost_usd), 6),
            self.estimated,
        )


NO_USAGE = Usage()


class CutCost(Struct, frozen=True):
    """The cost of a reply that the agent's end cut off, in dollars."""

    charged: float
    """The best estimate, which `Usage` includes."""
    most: float
    """The estimate if it was a long reply."""


class ReplyCosts(Struct, frozen=True, kw_only=True):
    """The cost of single replies in one attempt, in dollars: the basis of a reserve
    (`rules.reserve`). Zero where the model has no price."""

    cut: tuple[CutCost, ...] = ()
    """The replies that the agent's end cut off."""
    dearest: float = 0.0
    """The cost of the dearest reply whose figure is known."""


NO_COSTS = ReplyCosts()


class Reply(Struct, frozen=True, kw_only=True):
    """One answer of the model, and its usage as far as reported. A CLI reports the same answer
    several times; the output tokens come last."""

    id: str
    """The service's id of the answer, or another key that distinguishes it. Empty: the answer that
    was reported last."""
    usage: Usage
    model: str = ""
    """Name of the model; empty if not reported."""
    hour: int = 0
    """The part of `usage.cache_write` that the cache keeps for an hour."""
    unnamed: bool = False
    """Whether this is a count of the whole conversation, from a CLI that does not name its replies.
    Such a count is ignored if there are replies with names."""
    at: int = 0
    """Time at which the answer was written, in ms; 0: not reported."""
    begins: bool = False
    """Whether only the beginning of the answer is reported here, so that its output is still to
    come."""
    ends: bool = False
    """Whether the end of the answer is reported here."""
    calls: bool = False
    """Whether the answer called a tool, so that the agent will ask its model again."""

    def merge(self, later: Reply) -> Reply:
        """Return the combined reply, with the larger one of each count."""
        usage = Usage(
            max(self.usage.input, later.usage.input),
            max(self.usage.output, later.usage.output),
            max(self.usage.cached, later.usage.cached),
            max(self.usage.cache_write, later.usage.cache_write),
            max(self.usage.cost_usd, later.usage.cost_usd),
            self.usage.estimated or later.usage.estimated,
        )
        return Reply(
            id=self.id,
            usage=usage,
            model=later.model or self.model,
            hour=max(self.hour, later.hour),
            at=self.at,
            begins=self.begins or later.begins,
            ends=self.ends or later.ends,
            calls=self.calls or later.calls,
        )

    @property
    def cut(self) -> bool:
        """Whether the beginning of the answer was reported, and its end was not."""
        return self.begins and not self.ends


class Fill(Struct, frozen=True, kw_only=True):
    """The fill of a conversation: the size of its newest request, and the window of its model, in
    tokens."""

    tokens: int = 0
    """Input of the newest request, including cached parts; after a compaction, the size that the
    CLI reports as left. 0: there was no request, or its size is unknown."""
    window: int = 0
    """Window of the model; 0: unknown."""
    model: str = ""
    source: str = ""
    """The source of `window`: `agent`, `setting` or `table`."""
    compactions: int = 0
    """Number of compactions according to the transcript."""
    held: int = 0
    """Tokens before the latest compaction (`held`) and after it (`left`)."""
    left: int = 0


class CompactAt(Struct, frozen=True, kw_only=True):
    """The fill at which a CLI is told to compact its conversation, in tokens. 0: not known; then
    `percent` of the window applies."""

    tokens: int = 0
    window: int = 0
    percent: int = 0
    given: bool = False
    """Whether the user set the window, so that the CLI has to be told."""
