"""The state machine of a run, and the decision after each outcome."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from perdure.model import ContinuityPolicy, Decision, Outcome, OutcomeKind, RunState
from perdure.rules.lifecycle import (
    AT_ONCE,
    FINAL,
    FREE,
    FREE_LIMIT,
    FURTHEST_MS,
    LOST_CONVERSATION,
    MOVES,
    NEEDS_PERSON,
    UNCOUNTED,
    Tally,
    Trigger,
    advance,
    decide,
)
from tests.pure.making import kinds, outcomes, policies, times

S, T, K = RunState, Trigger, OutcomeKind
NOW = 1_700_000_000_000
ROUNDS = 2

# The published table of transitions, written here once more, so that the machine cannot be changed
# by accident.
PUBLISHED = {
    S.PENDING: {T.READY: S.QUEUED, T.CANCEL: S.CANCELLED},
    S.QUEUED: {T.CLAIM: S.RUNNING, T.CANCEL: S.CANCELLED},
    S.RUNNING: {T.SUCCEED: S.SUCCEEDED, T.FAIL: S.FAILED, T.AGAIN: S.QUEUED, T.CANCEL: S.CANCELLED},
    S.SUCCEEDED: {T.REOPEN: S.QUEUED},
    S.FAILED: {T.REOPEN: S.QUEUED},
    S.CANCELLED: {T.REOPEN: S.QUEUED},
}

tallies = st.builds(
    Tally,
    counted=st.integers(0, 30),
    free=st.integers(0, 30),
    allowed=st.integers(1, 20),
    spent_usd=st.floats(0, 50),
    budget_usd=st.just(0.0) | st.floats(0.01, 50),
    rounds=st.integers(0, 10),
    rounds_allowed=st.integers(0, 10),
)
jitters = st.floats(0, 1, exclude_max=True)


# --- the machine
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", T)
@pytest.mark.parametrize("state", S)
def test_each_state_with_each_trigger(state: RunState, trigger: Trigger) -> None:
    """Each pair leads to the state of the published table, or is refused with a sentence."""
    expected = PUBLISHED[state].get(trigger)
    if expected is not None:
        assert advance(state, trigger) is expected
        return
    with pytest.raises(ValueError, match=f"a run that is {state} cannot {trigger}"):
        advance(state, trigger)


def test_final_states_are_those_that_only_a_person_leaves() -> None:
    """A state is final if and only if `reopen` is the only way out of it."""
    assert {state for state in S if set(PUBLISHED[state]) == {T.REOPEN}} == FINAL
    assert {state for state, _ in MOVES} == set(S)


class AnyLife(RuleBasedStateMachine):
    """A run to which events happen in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = S.PENDING

    @rule(trigger=st.sampled_from(T))
    def happens(self, trigger: Trigger) -> None:
        before = self.state
        try:
            self.state = advance(before, trigger)
        except ValueError:
            return
        if before in FINAL:
            assert (trigger, self.state) == (T.REOPEN, S.QUEUED)
        if self.state in (S.SUCCEEDED, S.FAILED):
            assert before is S.RUNNING
        if self.state is S.RUNNING:
            assert (before, trigger) == (S.QUEUED, T.CLAIM)

    @invariant()
    def one_of_the_six(self) -> None:
        assert self.state in set(S)


TestAnyLife = AnyLife.TestCase
TestAnyLife.__doc__ = (
    "No sequence of triggers leaves the six states, and a final one is left by `reopen` alone."
)


# --- the decision
# --------------------------------------------------------------------------------------------------


@given(outcomes, tallies, policies, times, jitters)
def test_every_outcome_has_a_decision(
    outcome: Outcome, tally: Tally, policy: ContinuityPolicy, now: int, jitter: float
) -> None:
    """After any events, the run succeeds, fails, is cancelled, or is queued for a time that is not
    past, with a reason."""
    decision = decide(outcome, tally, policy, now, jitter)
    assert decision.state in {S.SUCCEEDED, S.FAILED, S.CANCELLED, S.QUEUED}
    assert (decision.state is S.SUCCEEDED) == outcome.ok
    assert (decision.state is S.CANCELLED) == (outcome.kind is K.CANCELLED)
    if decision.state is S.QUEUED:
        assert decision.run_after >= now
    if not outcome.ok:
        assert decision.reason
    if decision.condition:
        assert decision.state is S.FAILED
        assert (decision.condition.type, decision.condition.at) == ("needs_person", now)


def follow(
    outcome: Outcome, allowed: int, policy: ContinuityPolicy = ContinuityPolicy.DISCLOSE
) -> list[Decision]:
    """Return the decisions about a run whose attempts all end with this outcome. Each attempt
    begins at the time that the previous decision named."""
    decisions: list[Decision] = []
    now = NOW
    while not decisions or decisions[-1].state is S.QUEUED:
        ended = len(decisions) + 1
        assert ended < 1000, "the run goes on for ever"
        free = outcome.kind in FREE
        checked = ended if outcome.kind is K.VERIFY_FAILED else 0
        counted = 0 if outcome.kind in UNCOUNTED else ended
        tally = Tally(
            counted=counted,
            free=ended if free else 0,
            allowed=allowed,
            rounds=checked,
            rounds_allowed=ROUNDS,
        )
        decisions.append(decide(outcome, tally, policy, now))
        now = max(now, decisions[-1].run_after)
    return decisions


@pytest.mark.parametrize("policy", ContinuityPolicy)
@pytest.mark.parametrize("kind", K)
def test_no_outcome_goes_on_for_ever(kind: OutcomeKind, policy: ContinuityPolicy) -> None:
    """A run whose attempts all end alike ends after the requested attempts or failed checks, or
    after the limit of uncounted attempts."""
    decisions = follow(Outcome(kind=kind, detail="the same again"), allowed=3, policy=policy)
    assert decisions[-1].state in FINAL
    strict_loss = policy is ContinuityPolicy.STRICT and kind in LOST_CONVERSATION
    once = kind in (K.SUCCEEDED, K.CANCELLED, *NEEDS_PERSON) or strict_loss
    limit = {K.VERIFY_FAILED: ROUNDS + 1}
    assert len(decisions) == (1 if once else FREE_LIMIT if kind in FREE else limit.get(kind, 3))


@given(st.lists(kinds, min_size=1), st.integers(1, 5))
def test_no_mixture_goes_on_for_ever(cycle: list[OutcomeKind], allowed: int) -> None:
    """However outcomes alternate, a run ends. Attempts that count are limited in total, and the
    others in a row."""
    past: list[OutcomeKind] = []
    state = S.QUEUED
    while state is S.QUEUED:
        past.append(cycle[len(past) % len(cycle)])
        assert len(past) <= (allowed + ROUNDS + 2) * FREE_LIMIT
        free = next((at for at, kind in enumerate(reversed(past)) if kind not in FREE), len(past))
        rounds = past.count(K.VERIFY_FAILED)
        tally = Tally(
            counted=sum(kind not in UNCOUNTED for kind in past),
            free=free,
            allowed=allowed,
            rounds=rounds,
            rounds_allowed=ROUNDS,
        )
        state = decide(Outcome(kind=past[-1]), tally, ContinuityPolicy.FRESH_OK, NOW).state


@given(st.integers(1, FREE_LIMIT - 1), st.integers(1, 5), policies, jitters)
def test_what_was_lost_before_its_start_does_not_count(
    free: int, allowed: int, policy: ContinuityPolicy, jitter: float
) -> None:
    """A server that is restarted while an attempt opens uses up no attempt. The number of such
    restarts is limited."""
    lost = Outcome(kind=K.LOST, detail="before its agent")
    tally = Tally(counted=allowed, free=free, allowed=allowed, unbegun=True, loop="it crashes")
    decision = decide(lost, tally, policy, NOW, jitter)
    assert decision.state is S.QUEUED and NOW < decision.run_after <= NOW + 1_100_000
    assert decide(lost, replace(tally, unbegun=False), policy, NOW, jitter).state is S.FAILED
    assert decide(lost, replace(tally, free=FREE_LIMIT), policy, NOW, jitter).state is S.FAILED


@given(st.integers(1, 10**9), st.integers(1, FREE_LIMIT - 1), policies, jitters)
def test_a_usage_limit_waits_until_its_time(
    ahead: int, free: int, policy: ContinuityPolicy, jitter: float
) -> None:
    """If the agent said when the limit ends, the run is due at that millisecond, however many
    attempts there were."""
    outcome = Outcome(kind=K.RATE_LIMITED, until=NOW + ahead)
    decision = decide(outcome, Tally(counted=0, free=free, allowed=3), policy, NOW, jitter)
    assert (decision.state, decision.run_after) == (S.QUEUED, NOW + ahead)


def test_a_limit_without_end_is_not_believed() -> None:
    """If the end of a limit is in another century (a wrong clock, a misread number), the limit is
    treated as one without an end."""
    far = Outcome(kind=K.RATE_LIMITED, until=NOW + FURTHEST_MS + 1)
    decision = decide(far, Tally(counted=0, free=1, allowed=3), ContinuityPolicy.DISCLOSE, NOW)
    assert (decision.state, decision.run_after) == (S.QUEUED, NOW + 900_000)


def test_a_limit_that_should_be_over_is_tried_ever_more_slowly() -> None:
    """If the end of a limit has already passed (a wrong clock, an old message), the run is tried
    again soon, but with longer and longer delays."""
    waits = [
        decision.run_after
        for decision in follow(Outcome(kind=K.RATE_LIMITED, until=NOW - 1), allowed=3)[:-1]
    ]
    delays = [due - before for before, due in zip([NOW, *waits], waits, strict=False)]
    assert 0 < delays[0] <= 2000
    assert delays == sorted(delays)
    assert delays[-1] >= 600_000


@pytest.mark.parametrize("kind", sorted(LOST_CONVERSATION))
def test_a_strict_run_that_lost_its_conversation_asks_a_person(kind: OutcomeKind) -> None:
    """The policy `strict` stops the run and asks a person. The other policies continue it."""
    tally = Tally(counted=1, free=0, allowed=3)
    asked = decide(Outcome(kind=kind), tally, ContinuityPolicy.STRICT, NOW)
    assert asked.state is S.FAILED
    assert asked.condition is not None
    assert ("too long" if kind is K.CONTEXT_EXHAUSTED else "strict") in asked.condition.message
    for policy in (ContinuityPolicy.DISCLOSE, ContinuityPolicy.FRESH_OK):
        assert decide(Outcome(kind=kind), tally, policy, NOW).state is S.QUEUED


@pytest.mark.parametrize("kind", sorted(NEEDS_PERSON))
@pytest.mark.parametrize("policy", ContinuityPolicy)
def test_what_only_a_person_can_mend_is_asked_at_once(
    kind: OutcomeKind, policy: ContinuityPolicy
) -> None:
    """A missing login, an invalid setting, an open question and a spent budget are not retried. The
    condition says what to do."""
    decision = decide(
        Outcome(kind=kind, detail="why"), Tally(counted=1, free=0, allowed=9), policy, NOW
    )
    assert (decision.state, decision.reason) == (S.FAILED, f"{kind}: why")
    assert decision.condition is not None
    assert "perdure" in decision.condition.message


@given(outcomes, tallies, policies, st.floats(0.01, 100), st.floats(0, 100))
def test_a_spent_budget_buys_nothing_more(
    outcome: Outcome, tally: Tally, policy: ContinuityPolicy, budget: float, over: float
) -> None:
    """Once the budget is spent, no outcome leads to another attempt."""
    spent = replace(tally, budget_usd=budget, spent_usd=budget + over)
    assert decide(outcome, spent, policy, NOW).state is not S.QUEUED


@given(
    st.sampled_from(
        sorted(set(K) - set(NEEDS_PERSON) - {K.SUCCEEDED, K.CANCELLED, K.VERIFY_FAILED})
    ),
    st.integers(1, FREE_LIMIT - 2),
    jitters,
)
def test_delays_grow_within_bounds(kind: OutcomeKind, tries: int, jitter: float) -> None:
    """A delay varies by a fifth around its middle, is at most 18 minutes, and never shrinks with
    the number of tries."""
    outcome = Outcome(kind=kind)

    def wait(tries: int, jitter: float) -> int:
        return (
            decide(
                outcome,
                Tally(counted=tries, free=tries, allowed=99),
                ContinuityPolicy.DISCLOSE,
                NOW,
                jitter,
            ).run_after
            - NOW
        )

    middle = wait(tries, 0.5)
    assert 0.8 * middle - 1 <= wait(tries, jitter) <= 1.2 * middle + 1
    assert wait(tries, jitter) <= 900_000 * 1.2
    assert wait(tries + 1, jitter) >= wait(tries, jitter)
    assert (middle == 0) == (kind in AT_ONCE)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 30), policies)
def test_a_failed_check_goes_back_as_often_as_was_asked(
    rounds: int, allowed: int, counted: int, policy: ContinuityPolicy
) -> None:
    """The check's output goes back at once, even if crashes have used up attempts. The failure
    after the last round fails the run, with its evidence."""
    outcome = Outcome(
        kind=K.VERIFY_FAILED, detail="`make test` failed with exit code 2: AssertionError: 3 != 4"
    )
    tally = Tally(counted=counted, free=0, allowed=3, rounds=rounds + 1, rounds_allowed=allowed)
    decision = decide(outcome, tally, policy, NOW)
    if rounds < allowed:
        assert (decision.state, decision.run_after) == (S.QUEUED, NOW)
    else:
        assert (decision.state, decision.condition) == (S.FAILED, None)
    assert "AssertionError: 3 != 4" in decision.reason
