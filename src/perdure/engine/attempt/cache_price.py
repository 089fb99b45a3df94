"""Decides by cost how an idle conversation continues, when the service's prompt cache may have lost
it. Called by `start_facts` for a conversation that could be resumed.

By default the conversation is resumed, and `perdure why` shows the figures. The setting
`cold_cache` allows alternatives: compact it first, start a new conversation with a brief, or ask a
person. If that person retries the run, the conversation is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from perdure.engine.attempt.engine import Engine, agent_environment
from perdure.model import (
    PUT_BACK,
    Attempt,
    Claim,
    ColdCache,
    Continuation,
    ContinuityPolicy,
    Fill,
    OutcomeKind,
    Rung,
    Session,
    Start,
    TaskRun,
)
from perdure.protocols import AgentDriver, RunStore
from perdure.rules.context_window import can_compact
from perdure.rules.pricing import PricedChoice, PromptCache, Way, choose, lifetime_s, price_of

ASKED = "continuing costs more than the alternative"


def weigh(
    engine: Engine,
    claim: Claim,
    driver: AgentDriver,
    live: Session,
    fill: Fill,
    asked: Continuation,
    new_id: str,
) -> Continuation:
    """Return `asked`, the planned continuation, with the estimated cost of each alternative added.
    If the settings allow a cheaper continuation, return that one. If a person has to decide, return
    a continuation of the kind `refuse`."""
    env = agent_environment(engine.environ, driver, claim.run)
    cache = _prompt_cache(env, claim.run, live, fill, engine.store.now())
    choice = _choice(cache, engine.cold_cache, claim.run, driver, fill)
    weighed = replace(
        asked,
        prices=choice.usd,
        reason=f"{asked.reason}; {choice.reason}" if choice.reason else asked.reason,
    )
    if choice.way is Way.COMPACT:
        return replace(weighed, compact=True)
    if choice.way is Way.FRESH:
        reason = (
            f"a new conversation with a brief costs less than continuing {live.id}: {choice.reason}"
        )
        return replace(
            weighed,
            kind=Start.REBUILD,
            session_id=new_id,
            rung=Rung.REBUILT,
            lost_session_id=live.id,
            reason=reason,
        )
    if choice.way is Way.ASK and not _answered(engine.store, claim):
        return replace(
            weighed,
            kind=Start.REFUSE,
            reason=f"{ASKED}: {choice.reason}; perdure retry continues it anyway",
        )
    return weighed


def _prompt_cache(
    env: Mapping[str, str], run: TaskRun, live: Session, fill: Fill, now: int
) -> PromptCache:
    """Return the facts about the conversation in the service's prompt cache: its size, how long it
    has been idle, and how long the cache keeps an idle conversation. `env`: the agent's
    environment."""
    hour = bool(env.get("ENABLE_PROMPT_CACHING_1H")) or not env.get("ANTHROPIC_API_KEY")
    return PromptCache(
        tokens=fill.tokens,
        idle_s=max(0, now - live.updated) / 1000,
        lifetime_s=lifetime_s(run.spec.agent, hour=hour),
    )


def _choice(
    cache: PromptCache, cold_cache: ColdCache, run: TaskRun, driver: AgentDriver, fill: Fill
) -> PricedChoice:
    return choose(
        cache,
        price_of(fill.model or run.spec.model),
        cold_cache,
        can_compact=can_compact(driver.abilities.compacts, fill, in_vain=False),
        may_begin_anew=run.spec.continuity is not ContinuityPolicy.STRICT,
    )


def _answered(store: RunStore, claim: Claim) -> bool:
    """Return whether the previous attempt ended by asking a person whether to continue at this
    cost. A later attempt exists only if that person retried the run, which means yes."""
    for last in reversed(store.attempts(claim.run.id)):
        if last.number < claim.attempt:
            kind = last.outcome.kind if last.outcome is not None else None
            return kind is OutcomeKind.NEEDS_INPUT and _is_question(last)
    return False


def _is_question(attempt: Attempt) -> bool:
    return attempt.outcome is not None and attempt.outcome.detail.startswith(ASKED)


def has_choice(asked: Continuation) -> bool:
    """Return whether a cheaper continuation may replace `asked`. It may do so only if `asked`
    resumes the agent's own transcript unchanged."""
    return asked.kind is Start.RESUME and asked.rung not in PUT_BACK and not asked.compact
