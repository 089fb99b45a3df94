"""Estimates the cost of continuing a conversation, and whether another way would cost less. Pure;
called by `attempt`.

A model's service keeps the part of a conversation that it has read for minutes or an hour (the
*prompt cache*). A conversation that was idle for longer has to be read again, at the price of a
cache write. The first request after that is its most expensive one, and costs more the longer the
conversation is. The other ways cost something too. Compacting reads everything once more. A new
conversation has to read again the files that the old one had read.

`ways` estimates all three over the usual number of requests of an attempt, and `choose` picks one
by the user's policy. The dollars are estimates from list prices and the assumptions below. They are
shown as estimates, and never counted as spent.
"""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from perdure.model import ColdCache, Usage
from perdure.rules.text import tokens


class Price(Struct, frozen=True):
    """Price in US dollars per million tokens: for input, for cached input, for input written to the
    cache for 5 minutes, and for output."""

    input: float
    cached: float
    write: float
    output: float
    write_1h: float = 0.0
    """Price of input written to the cache for an hour, where the service offers that; 0 means the
    same as `write`."""


PRICES: tuple[tuple[str, Price], ...] = (
    # Anthropic's price list, platform.claude.com/docs/en/about-claude/pricing, read 2026-11-21.
    ("*claude-fable-5-1*", Price(10, 0.25, 12.5, 50, 20)),
    ("*claude-fable-5*", Price(10, 1, 12.5, 50, 20)),
    # From the price list in Claude Code 2.1.329, measured on 2026-11-22. The prices of cache writes
    # are computed. The ratio of the cache-write price to the input price is assumed to be the same
    # as for all other models.
    ("*claude-opus-5-5*", Price(4, 0.2, 5, 20, 8)),
    ("*claude-sonnet-5-5*", Price(2, 0.1, 2.5, 10, 4)),
    ("*claude-sonnet-5", Price(2, 0.2, 2.5, 10, 4)),
    ("*claude-haiku-5-5*", Price(0.1, 0.01, 0.125, 0.5, 0.2)),
    ("*claude-opus-5", Price(5, 0.5, 6.25, 25, 10)),
    ("*claude-opus-5-2*", Price(5, 0.5, 6.25, 25, 10)),
    ("*claude-opus-4-[5-8]*", Price(5, 0.5, 6.25, 25, 10)),
    ("*claude-opus-4*", Price(15, 1.5, 18.75, 75, 30)),
    ("*claude-sonnet-4*", Price(3, 0.3, 3.75, 15, 6)),
    ("*claude-haiku-4*", Price(1, 0.1, 1.25, 5, 2)),
    # OpenAI's rate card for Codex (25 credits are a dollar) of 2026-05-13, as in codex-ops 0.1.3; a
    # cache write costs the same as input.
    ("gpt-5.5", Price(5, 0.5, 5, 30)),
    ("gpt-5.4", Price(2.5, 0.25, 2.5, 15)),
    ("gpt-5.4-mini", Price(0.75, 0.075, 0.75, 4.52)),
    ("gpt-5.3-codex", Price(1.75, 0.175, 1.75, 14)),
    ("gpt-5.2*", Price(1.75, 0.175, 1.75, 14)),
)
"""Prices by pattern of a model's name; the first match counts. If no pattern matches, the cost has
no influence on how the conversation continues."""

HOUR_S, FIVE_MINUTES_S, TEN_MINUTES_S = 3600.0, 300.0, 600.0

REQUESTS = 10
"""Assumed number of requests to the model in an attempt."""
PROGRAM = 15_000
"""Assumed size of an agent's own instructions and tools, in tokens. They precede every
conversation."""
FIRST_REQUEST = 20_000
"""Assumed size of a conversation's first request without its prompt, in tokens."""
REPLY = 3_000
"""Assumed size of a long reply, in tokens. Also assumed for a reply that was cut off, if nothing
else is known."""
SUMMARY = 4_000
"""Assumed size of a conversation after it was compacted, in tokens."""
BRIEF = 3_000
READ_AGAIN = 4
"""Divisor of the size of the old conversation. It gives the assumed size of the part that a new
conversation reads again: a quarter."""
WORTH = 0.8
"""Maximum cost of a way to continue that is chosen instead of resuming, as a fraction of the cost
of resuming. It is below 1, because the estimates are rough and continuity has a value of its own.
"""


class Way(StrEnum):
    """The ways to continue after a conversation was idle."""

    RESUME = "resume"
    COMPACT = "compact"
    FRESH = "fresh"
    ASK = "ask"


class PromptCache(Struct, frozen=True, kw_only=True):
    """The state of a conversation's prompt cache when an attempt is about to start."""

    tokens: int
    """Size of the newest request, in tokens."""
    idle_s: float
    """Time since the conversation's last request, in seconds."""
    lifetime_s: float

    @property
    def cold(self) -> bool:
        return self.idle_s >= self.lifetime_s


class PricedChoice(Struct, frozen=True, kw_only=True):
    """The chosen way to continue, and the cost of each way over the attempt, in US dollars."""

    way: Way
    usd: tuple[tuple[str, float], ...] = ()
    reason: str = ""


@cache
def price_of(model: str) -> Price | None:
    """Return the list price of a model by the name that its service uses; None if unknown."""
    name = model.lower()
    # Compiling a pattern takes a millisecond, so patterns that cannot match are skipped first.
    for pattern, price in PRICES:
        if pattern.strip("*").partition("[")[0] in name and fnmatchcase(name, pattern):
            return price
    return None


def cost(usage: Usage, price: Price, hour: int = 0) -> float:
    """Return the list price of the tokens, in US dollars. `hour`: the number of cache-write tokens
    that are kept for an hour."""
    plain = max(0, usage.input - usage.cached - usage.cache_write)
    longer = min(hour, usage.cache_write) * max(0.0, price.write_1h - price.write)
    dollars = (
        plain * price.input
        + usage.cached * price.cached
        + usage.cache_write * price.write
        + usage.output * price.output
    )
    return round((dollars + longer) / 1e6, 6)


def priced(usage: Usage, model: str, hour: int = 0) -> Usage:
    """Return the usage with an estimated cost from the list price. The usage is returned unchanged
    if the agent reported dollars, or if the model has no list price."""
    price = None if usage.cost_usd else price_of(model)
    if price is None or not (usage.input or usage.output):
        return usage
    return replace(usage, cost_usd=cost(usage, price, hour), estimated=True)


def lifetime_s(agent: str, *, hour: bool) -> float:
    """Return how long a service keeps a conversation in the prompt cache after its last use, in
    seconds. `hour`: whether the longer of Anthropic's two times is paid for.

    Anthropic: 5 minutes, or an hour (platform.claude.com/docs/en/build-with-claude/prompt-caching);
    Claude Code asks for an hour with a subscription, and with a key if ENABLE_PROMPT_CACHING_1H is
    set (anthropics/claude-code#49139). OpenAI: 5 to 10 minutes
    (platform.openai.com/docs/guides/prompt-caching). For other services, 5 minutes are assumed.
    """
    if agent == "claude" and hour:
        return HOUR_S
    if agent in ("codex", "acp-codex"):
        return TEN_MINUTES_S
    return FIVE_MINUTES_S


def ways(cache: PromptCache, price: Price) -> dict[Way, float]:
    """Return the cost of each way over an attempt, in US dollars. Input and the output of a
    compaction's summary are counted. All other output is ignored."""
    if cache.lifetime_s >= HOUR_S:
        write = price.write_1h or price.write
    else:
        write = price.write
    first = write if cache.cold else price.cached

    def onward(held: float) -> float:
        return (REQUESTS - 1) * held * price.cached

    shorter = min(PROGRAM + SUMMARY, cache.tokens)
    fresh = PROGRAM + BRIEF + cache.tokens / READ_AGAIN
    dollars = {
        Way.RESUME: cache.tokens * first + onward(cache.tokens),
        Way.COMPACT: cache.tokens * first
        + SUMMARY * price.output
        + shorter * write
        + onward(shorter),
        Way.FRESH: fresh * write + onward(fresh),
    }
    return {way: round(found / 1e6, 4) for way, found in dollars.items()}


def choose(
    cache: PromptCache,
    price: Price | None,
    policy: ColdCache,
    *,
    can_compact: bool,
    may_begin_anew: bool,
) -> PricedChoice:
    """Return the way to continue that the user's policy selects. The conversation continues
    unchanged by default, while the cache is warm, or if the price is unknown."""
    if price is None or cache.tokens <= 0:
        return PricedChoice(way=Way.RESUME)
    found = ways(cache, price)
    allowed = {
        Way.RESUME,
        *([Way.COMPACT] if can_compact else []),
        *([Way.FRESH] if may_begin_anew else []),
    }
    shown = tuple((str(way), usd) for way, usd in found.items() if way in allowed)
    state = (
        f"its {tokens(cache.tokens)} tokens are no longer in the model's cache "
        f"({_span(cache.idle_s)} idle)"
    )
    prices = ", ".join(f"{way} ${usd:.2f}" for way, usd in shown)
    reason = f"{state}; estimated for the attempt: {prices}"
    if not cache.cold:
        return PricedChoice(way=Way.RESUME, usd=shown)
    if policy is ColdCache.RESUME:
        return PricedChoice(way=Way.RESUME, usd=shown, reason=reason)
    if policy is ColdCache.COMPACT:
        open_to = allowed - {Way.FRESH}
    else:
        open_to = allowed
    best = min(open_to, key=lambda way: (found[way], way is not Way.RESUME))
    if best is Way.RESUME or found[best] > WORTH * found[Way.RESUME]:
        return PricedChoice(way=Way.RESUME, usd=shown, reason=reason)
    return PricedChoice(way=Way.ASK if policy is ColdCache.ASK else best, usd=shown, reason=reason)


def _span(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min"
