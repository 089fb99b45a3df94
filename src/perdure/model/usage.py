"""What was used up: tokens and money, and how full a conversation's window is."""

from __future__ import annotations

from perdure.lateclass import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and dollars. `cached` and `cache_write` are parts of the input as the model's service
    reports them.

    `estimated`: the agent's program has not told its final figure (it still works, or was killed),
    or tells no dollars, so that perdure has counted or priced it.
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
        """What was added since `before`, never negative: a counter that fell back has started
        anew."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer of the model, as far as its usage is known. It is told several times, and its
    output last."""

    id: str
    """The service's own, or whatever tells two answers apart. Empty: the answer that was told
    last."""
    usage: Usage
    model: str = ""
    """Empty: not told."""
    hour: int = 0
    """The part of `usage.cache_write` that is written for an hour."""
    unnamed: bool = False
    """A count of the whole conversation that stands for a reply, in a CLI that names none. Void
    beside replies with names."""
    at: int = 0
    """When it was written down, in ms; 0: not told."""

    def merge(self, later: Reply) -> Reply:
        """Return what both together say: each count only grows."""
        usage = Usage(
            max(self.usage.input, later.usage.input),
            max(self.usage.output, later.usage.output),
            max(self.usage.cached, later.usage.cached),
            max(self.usage.cache_write, later.usage.cache_write),
        )
        return Reply(
            id=self.id,
            usage=usage,
            model=later.model or self.model,
            hour=max(self.hour, later.hour),
            at=self.at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """How full a conversation is: what its newest request carried, and what its model can take, in
    tokens."""

    tokens: int = 0
    """Input, cached parts included; after a compaction what the CLI says is left. 0: no request has
    been made, or nothing tells."""
    window: int = 0
    """0: nobody knows."""
    model: str = ""
    source: str = ""
    """Who says what the window is: `agent`, `setting` or `table`."""
    compactions: int = 0
    """How often it was made shorter, as its transcript has it."""
    held: int = 0
    """What it held before it was made shorter last, and then; both in tokens."""
    left: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactAt:
    """The fill at which a CLI is told to compact its conversation, in tokens; 0: not known, then
    `percent` of the window holds."""

    tokens: int = 0
    window: int = 0
    percent: int = 0
    given: bool = False
    """The window is the user's own word: the CLI has to be told."""
