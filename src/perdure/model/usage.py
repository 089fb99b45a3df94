"""Data types for usage: tokens, money, and how full a conversation's context window is."""

from __future__ import annotations

from msgspec import Struct


class Usage(Struct, frozen=True):
    """Tokens and dollars. `cached` and `cache_write` are parts of `input`, as the model's service
    reports them.

    `estimated`: perdure counted the tokens or estimated the price. The reason is that the agent has
    not reported its final numbers (it is running, or was killed), or that it reports no dollars.
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
        """Return the usage since `before`; no value is negative. If `input` or `output` decreased,
        the counters were restarted, and this whole usage is returned."""
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
    """The cost, in dollars, of a reply that was cut off because the agent ended."""

    charged: float
    """Best estimate of the cost. The attempt's `Usage` already contains it."""
    most: float
    """Upper estimate of the cost: what it would be if the reply was long."""


class ReplyCosts(Struct, frozen=True, kw_only=True):
    """The cost of single replies in one attempt, in dollars. `rules.lifecycle` computes a budget's
    reserve from it. All costs are 0 if the price of the model is unknown."""

    cut: tuple[CutCost, ...] = ()
    """Replies that were cut off because the agent ended."""
    dearest: float = 0.0
    """Cost of the most expensive reply whose usage is known."""


NO_COSTS = ReplyCosts()


class Reply(Struct, frozen=True, kw_only=True):
    """One answer of the model, with its usage as far as it is known. A CLI reports the same answer
    several times. Its output tokens are complete only in the last report."""

    id: str
    """Id that the model's service gave to the answer, or another unique key. Empty: the answer is
    the same as in the previous report."""
    usage: Usage
    model: str = ""
    """Name of the model; empty if not reported."""
    hour: int = 0
    """Number of the tokens in `usage.cache_write` that the prompt cache keeps for one hour."""
    unnamed: bool = False
    """Whether this is a total of the whole conversation, from a CLI that gives its replies no ids.
    Such a total is ignored if there are replies with ids."""
    at: int = 0
    """Time at which the answer was written, in ms; 0: not reported."""
    begins: bool = False
    """Whether this report is about the beginning of the answer. Its output tokens are then reported
    later."""
    ends: bool = False
    """Whether this report is about the end of the answer."""
    calls: bool = False
    """Whether the answer called a tool, so that the agent will ask its model again."""

    def merge(self, later: Reply) -> Reply:
        """Return this reply combined with a later report of it. Each count is the larger one of the
        two."""
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
        """Whether the answer was cut off: its beginning was reported, and its end was not."""
        return self.begins and not self.ends


class Fill(Struct, frozen=True, kw_only=True):
    """How full a conversation is: the size of its newest request compared with the window of its
    model, in tokens."""

    tokens: int = 0
    """Input of the newest request, including cached parts. After a compaction: the size that
    remains, as the CLI reports it. 0: there was no request, or its size is unknown."""
    window: int = 0
    """Size of the model's window, in tokens; 0: unknown."""
    model: str = ""
    source: str = ""
    """Origin of the value of `window`: `agent` (its report), `setting`, or `table` (perdure's list
    of models)."""
    compactions: int = 0
    """Number of compactions according to the transcript."""
    held: int = 0
    """Size of the conversation before the latest compaction, in tokens. `left` is the size after
    it."""
    left: int = 0


class CompactAt(Struct, frozen=True, kw_only=True):
    """How full a conversation must be for the CLI to compact it, in tokens. If `tokens` is 0,
    `percent` of the window applies instead."""

    tokens: int = 0
    window: int = 0
    percent: int = 0
    given: bool = False
    """Whether the user set the size of the window. The CLI is then told that size."""
