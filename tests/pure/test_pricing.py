"""The cost of continuing a conversation, and the choice of another way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.engine.attempt.budget import spent
from perdure.model import Attempt, ColdCache, Fill, Usage
from perdure.rules.pricing import (
    PRICES,
    WORTH,
    Price,
    PromptCache,
    Way,
    choose,
    cost,
    lifetime_s,
    price_of,
    ways,
)

OPUS = price_of("claude-opus-5")
assert OPUS is not None

caches = st.builds(
    PromptCache,
    tokens=st.integers(1, 1_000_000),
    idle_s=st.floats(0, 100_000),
    lifetime_s=st.sampled_from([300.0, 600.0, 3600.0]),
)
prices = st.sampled_from([price for _, price in PRICES])
policies = st.sampled_from(ColdCache)


def cold(tokens: int) -> PromptCache:
    return PromptCache(tokens=tokens, idle_s=7200, lifetime_s=3600)


@given(caches, prices, st.booleans(), st.booleans())
def test_by_default_a_conversation_goes_on(
    cache: PromptCache, price: Price, can_compact: bool, anew: bool
) -> None:
    """By default a conversation continues at any cost, even if another way is possible."""
    chosen = choose(cache, price, ColdCache.RESUME, can_compact=can_compact, may_begin_anew=anew)
    assert chosen.way is Way.RESUME
    assert dict(chosen.usd)["resume"] >= 0


@given(caches, prices, policies, st.booleans(), st.booleans())
def test_nothing_is_chosen_that_is_not_allowed_or_not_cheaper(
    cache: PromptCache, price: Price, policy: ColdCache, can_compact: bool, anew: bool
) -> None:
    """A warm conversation continues. Another way is chosen only if it is possible, allowed by the
    policy, and clearly cheaper by the figures that are shown."""
    chosen = choose(cache, price, policy, can_compact=can_compact, may_begin_anew=anew)
    shown = dict(chosen.usd)
    assert ("compact" in shown, "fresh" in shown) == (can_compact, anew)
    if chosen.way is Way.RESUME:
        return
    assert cache.cold and chosen.reason and policy is not ColdCache.RESUME
    if chosen.way is Way.ASK:
        assert policy is ColdCache.ASK and min(shown.values()) <= WORTH * shown["resume"]
        return
    assert shown[chosen.way] <= WORTH * shown["resume"]
    assert policy is not ColdCache.ASK
    assert chosen.way is Way.COMPACT or policy is ColdCache.CHEAPEST


@given(st.integers(1_000, 900_000), st.integers(1, 100_000), prices)
def test_longer_is_dearer_and_cold_is_dearer(tokens: int, more: int, price: Price) -> None:
    """A longer conversation costs more to continue than a shorter one, and a cold one more than a
    warm one."""
    warm = PromptCache(tokens=tokens, idle_s=0, lifetime_s=3600)
    assert (
        ways(warm, price)[Way.RESUME]
        <= ways(cold(tokens), price)[Way.RESUME]
        <= ways(cold(tokens + more), price)[Way.RESUME]
    )


def test_the_first_request_after_an_hour_is_the_dearest() -> None:
    """400,000 tokens of Opus: continuing costs 2 dollars when warm. When cold it costs 3.80 more,
    all for the first request. A brief costs less than half."""
    warm = PromptCache(tokens=400_000, idle_s=60, lifetime_s=3600)
    assert ways(warm, OPUS)[Way.RESUME] == 2.0
    assert ways(cold(400_000), OPUS)[Way.RESUME] == pytest.approx(5.8)
    assert ways(cold(400_000), OPUS)[Way.FRESH] < 5.8 / 2
    chosen = choose(cold(400_000), OPUS, ColdCache.CHEAPEST, can_compact=True, may_begin_anew=True)
    assert (
        chosen.way is Way.FRESH
        and "2 h 0 min idle" in chosen.reason
        and "resume $5.80" in chosen.reason
    )
    assert (
        choose(cold(400_000), OPUS, ColdCache.ASK, can_compact=False, may_begin_anew=True).way
        is Way.ASK
    )
    assert (
        choose(cold(400_000), OPUS, ColdCache.COMPACT, can_compact=True, may_begin_anew=True).way
        is Way.COMPACT
    )
    assert (
        choose(cold(10_000), OPUS, ColdCache.CHEAPEST, can_compact=True, may_begin_anew=True).way
        is Way.RESUME
    )


@pytest.mark.parametrize("policy", ColdCache)
def test_without_a_price_nothing_is_chosen_by_it(policy: ColdCache) -> None:
    """If the model's price or the conversation's size is unknown, the conversation continues."""
    assert price_of("rehearsal") is None
    for cache, price in ((cold(400_000), None), (cold(0), OPUS)):
        assert choose(cache, price, policy, can_compact=True, may_begin_anew=True) == choose(
            cache, price, ColdCache.RESUME, can_compact=False, may_begin_anew=False
        )


def test_tokens_in_dollars() -> None:
    """Tokens that are read from the cache, tokens that are written to it and all others have
    different prices. The lifetimes of the cache are those of the services."""
    assert cost(
        Usage(input=1_000_000, cached=600_000, cache_write=100_000, output=10_000), OPUS
    ) == pytest.approx(1.5 + 0.3 + 0.625 + 0.25)
    assert [
        lifetime_s("claude", hour=True),
        lifetime_s("claude", hour=False),
        lifetime_s("codex", hour=True),
    ] == [3600, 300, 600]
    assert (
        price_of("us.anthropic.claude-opus-4-6-v1:0") == OPUS
        and price_of("claude-opus-4-1") != OPUS
    )


def test_a_budget_goes_by_the_model_that_was_at_work() -> None:
    """If no model was chosen, the tokens of an agent that reports no dollars are priced by the
    model that its transcript names."""
    attempt = Attempt(
        run="r", number=1, context_version=1, worker="w", started=0, usage=Usage(input=1_000_000)
    )
    assert spent([attempt], "") == 0
    assert spent([replace(attempt, fill=Fill(model="gpt-5.5"))], "") == 5
    assert spent([replace(attempt, flags={"model": "gpt-5.4"})], "") == 2.5


@pytest.mark.parametrize(
    ("count", "words"), [(107, "its 107 tokens"), (12_345, "its 12.3k tokens")]
)
def test_a_short_conversation_is_not_said_to_have_no_tokens(count: int, words: str) -> None:
    """The reason states the number of tokens in the same form as every other output."""
    chosen = choose(cold(count), OPUS, ColdCache.RESUME, can_compact=True, may_begin_anew=True)
    assert chosen.reason.startswith(words)
