"""The state machine of a run: which trigger leads to which state, and what follows an outcome. Also
estimates the cost of replies that were cut off. Pure.

The store calls `advance` for every move that a program decides: the end of an attempt, a stop, a
reopening. If several processes write at once, compare-and-set and a database trigger enforce the
same moves. A run is claimed by a single SQL statement. `engine.attempt` calls `decide` for the next
step. `docs/state_machine.md` shows `MOVES` as a diagram.

A reply that was cut off by the agent's end is charged a best estimate, which is too low for some
replies. perdure reports that estimate. When perdure decides whether to spend more of a budget, it
also subtracts a reserve (`reserve`). With it, the real cost exceeds the budget by at most one
reply. The reserve assumes that every such reply was long, and cost at least as much as the most
expensive reply with a known cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from itertools import chain

from msgspec import Struct

from perdure.model import (
    Condition,
    ContinuityPolicy,
    Decision,
    Outcome,
    OutcomeKind,
    ReplyCosts,
    RunState,
)


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


class Trigger(StrEnum):
    """The events that can change the state of a run."""

    READY = "ready"
    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    AGAIN = "again"
    CANCEL = "cancel"
    REOPEN = "reopen"


MOVES: dict[tuple[RunState, Trigger], RunState] = {
    (RunState.PENDING, Trigger.READY): RunState.QUEUED,
    (RunState.PENDING, Trigger.CANCEL): RunState.CANCELLED,
    (RunState.QUEUED, Trigger.CLAIM): RunState.RUNNING,
    (RunState.QUEUED, Trigger.CANCEL): RunState.CANCELLED,
    (RunState.RUNNING, Trigger.SUCCEED): RunState.SUCCEEDED,
    (RunState.RUNNING, Trigger.FAIL): RunState.FAILED,
    (RunState.RUNNING, Trigger.AGAIN): RunState.QUEUED,
    (RunState.RUNNING, Trigger.CANCEL): RunState.CANCELLED,
    (RunState.SUCCEEDED, Trigger.REOPEN): RunState.QUEUED,
    (RunState.FAILED, Trigger.REOPEN): RunState.QUEUED,
    (RunState.CANCELLED, Trigger.REOPEN): RunState.QUEUED,
}

FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


def advance(state: RunState, trigger: Trigger) -> RunState:
    """Return the state that the trigger leads to. Raises ValueError if the state machine has no
    move for this trigger in this state."""
    try:
        return MOVES[state, trigger]
    except KeyError:
        raise ValueError(f"a run that is {state} cannot {trigger}") from None


ENDED_BY = {
    RunState.SUCCEEDED: Trigger.SUCCEED,
    RunState.FAILED: Trigger.FAIL,
    RunState.QUEUED: Trigger.AGAIN,
    RunState.CANCELLED: Trigger.CANCEL,
}
"""The trigger that leads to a state, for each state in which no attempt runs. Reopening a run has
its own trigger."""


FREE = frozenset(
    {
        OutcomeKind.CONTEXT_EXHAUSTED,
        OutcomeKind.RATE_LIMITED,
        OutcomeKind.OVERLOADED,
        OutcomeKind.SESSION_MISSING,
        OutcomeKind.SESSION_BROKEN,
        OutcomeKind.WRITER_CONFLICT,
    }
)
"""Outcomes that say nothing about the task. Attempts that end with them are free: they do not count
toward the maximum number of attempts."""

UNCOUNTED = FREE | {OutcomeKind.VERIFY_FAILED, OutcomeKind.NEEDS_INPUT}
"""Outcomes whose attempts do not count toward the maximum number of attempts. They are the outcomes
in `FREE`, failed checks (which have their own limit, `verify_rounds`), and outcomes that wait for
an answer."""

FREE_LIMIT = 20
"""Number of consecutive free attempts after which the run fails, because waiting longer is unlikely
to help. A free attempt does not count toward the maximum number of attempts (see `FREE`)."""

BUDGET_IS_SPENT = "the budget is spent"
BUDGET_MAY_BE_SPENT = "the budget may be spent"

NEEDS_PERSON = {
    OutcomeKind.AUTH_FAILED: (
        "the agent has no valid credentials: log in with the agent's own program, then perdure "
        "retry"
    ),
    OutcomeKind.CONFIG_ERROR: (
        "the agent or its workdir is not set up for the run: fix the cause, then perdure retry"
    ),
    OutcomeKind.BUDGET_SPENT: f"{BUDGET_IS_SPENT}: perdure retry --budget-usd raises it",
    OutcomeKind.NEEDS_INPUT: (
        "the agent waits for you: answer with perdure update; where a call was denied, allow it "
        "(--permissions, or the agent's own settings), then perdure retry"
    ),
    OutcomeKind.DENIED: (
        "a tool call of the agent was denied: allow it (--permissions, or the agent's own "
        "settings), then perdure retry"
    ),
    OutcomeKind.REFUSED: (
        "the model refused: rephrase it with perdure update, or choose another model "
        "with perdure retry --model"
    ),
}

AT_ONCE = frozenset(
    {
        OutcomeKind.CONTEXT_EXHAUSTED,
        OutcomeKind.SESSION_MISSING,
        OutcomeKind.SESSION_BROKEN,
        OutcomeKind.TRUNCATED,
    }
)
UNUSABLE = frozenset({OutcomeKind.SESSION_MISSING, OutcomeKind.SESSION_BROKEN})
"""Outcomes which show that the agent could not use the conversation."""
LOST_CONVERSATION = frozenset({OutcomeKind.CONTINUITY_LOST, OutcomeKind.CONTEXT_EXHAUSTED})

NOT_ON = (
    "the conversation did not continue, and the policy is strict: perdure why shows the reason; "
    "perdure retry --continuity disclose starts a new conversation with a brief of what was done"
)
TOO_LONG = (
    "the conversation is too long for its model, and the settings forbid shortening it: perdure "
    "why shows its size; PERDURE_WHEN_FULL=compact perdure retry has the agent shorten it; "
    "perdure open lets you do it yourself"
)

_BACKOFF_S = {
    OutcomeKind.OVERLOADED: 30.0,
    OutcomeKind.RATE_LIMITED: 900.0,
    OutcomeKind.WRITER_CONFLICT: 15.0,
}
_BACKOFF_CAP_S = 900.0
_BY_SIGNAL = 128
"""Lowest exit code which means that a signal ended the program."""
FURTHEST_MS = 400 * 86_400_000
"""Maximum time from now until the end of a usage limit, in ms. If an agent reports a later end, it
is ignored, because it comes from a wrong clock or a misread time."""


class Tally(Struct, frozen=True, kw_only=True):
    """Counts over the run's attempts so far, including the one that has just ended."""

    counted: int
    """Number of attempts that count toward the maximum number of attempts."""
    free: int
    """Number of consecutive free attempts, including this one. Free attempts do not count toward
    the maximum number of attempts (see `FREE`)."""
    allowed: int
    spent_usd: float = 0.0
    reserve: Reserve = NO_RESERVE
    """Possible cost of replies that were cut off, in addition to `spent_usd`."""
    budget_usd: float = 0.0
    rounds: int = 0
    """Number of checks that failed under the newest instructions, including this one."""
    rounds_allowed: int = 0
    """Maximum number of failed checks after which the agent gets the output and tries again."""
    unbegun: bool = False
    """Whether this attempt was lost before its agent was started. Such an attempt does not count
    toward the maximum number of attempts."""
    loop: str = ""
    """Sentence that describes a crash loop, if the newest attempts are one (see `crashes.loop`);
    empty otherwise."""


def failed_by_itself(outcome: Outcome) -> bool:
    """Return whether the agent's program ended with an error that its driver does not recognize."""
    if outcome.kind is not OutcomeKind.FAILED or outcome.signal:
        return False
    return 0 < (outcome.code or 0) < _BY_SIGNAL


def decide(
    outcome: Outcome, tally: Tally, policy: ContinuityPolicy, now: int, jitter: float = 0.5
) -> Decision:
    """Return what follows an attempt. `now` is in ms. `jitter` in [0, 1) changes the delays by up
    to a fifth in either direction."""
    kind = outcome.kind
    if kind is OutcomeKind.SUCCEEDED:
        return Decision(state=RunState.SUCCEEDED)
    if kind is OutcomeKind.CANCELLED:
        return Decision(state=RunState.CANCELLED, reason=outcome.detail or "stopped on request")
    if kind is OutcomeKind.BUDGET_SPENT:
        return _ask(outcome, _budget_sentence(tally), now)
    if kind in NEEDS_PERSON:
        return _ask(outcome, NEEDS_PERSON[kind], now)
    if kind in LOST_CONVERSATION and policy is ContinuityPolicy.STRICT:
        return _ask(outcome, TOO_LONG if kind is OutcomeKind.CONTEXT_EXHAUSTED else NOT_ON, now)
    if budget_is_over(tally):
        return _ask(outcome, _budget_sentence(tally), now)
    if kind is OutcomeKind.VERIFY_FAILED:
        return _check_again(outcome, tally, now)
    free = kind in FREE or tally.unbegun
    if free and tally.free >= FREE_LIMIT:
        return Decision(
            state=RunState.FAILED, reason=f"{kind} {tally.free} times in a row: {outcome.detail}"
        )
    if not free and tally.counted >= tally.allowed:
        return Decision(
            state=RunState.FAILED,
            reason=f"{_say(outcome)}; {tally.counted} of {tally.allowed} attempts used",
        )
    if tally.loop and not free:
        return _ask(outcome, f"{tally.loop}: fix the cause, then perdure retry", now)
    return Decision(
        state=RunState.QUEUED, run_after=_when(outcome, tally, now, jitter), reason=_say(outcome)
    )


def _check_again(outcome: Outcome, tally: Tally, now: int) -> Decision:
    """Return what follows a failed check. Up to the allowed number of rounds, a new attempt starts
    immediately. After that the run fails, and the reason contains the evidence."""
    if tally.rounds <= tally.rounds_allowed:
        return Decision(state=RunState.QUEUED, run_after=now, reason=_say(outcome))
    gone_back = (
        f"it went back to the agent {tally.rounds - 1} time(s), as often as verify_rounds allows"
    )
    return Decision(state=RunState.FAILED, reason=f"{_say(outcome)}; {gone_back}")


def budget_is_over(tally: Tally) -> bool:
    """Return whether the budget is spent, or may be spent by replies that were cut off."""
    return bool(tally.budget_usd) and tally.spent_usd + tally.reserve.usd >= tally.budget_usd


def _budget_sentence(tally: Tally) -> str:
    """Return a sentence that says whether the budget is spent or only may be spent, and what to do.
    Called only if one of the two is true."""
    left = tally.budget_usd - tally.spent_usd
    if left <= 0 or tally.reserve.usd < left:
        return NEEDS_PERSON[OutcomeKind.BUDGET_SPENT]
    return (
        f"{BUDGET_MAY_BE_SPENT}: ${tally.spent_usd:.2f} of ${tally.budget_usd:.2f} is charged, "
        f"{may_have_cost(tally.reserve)}: perdure retry spends the rest, perdure retry "
        f"--budget-usd raises it"
    )


def is_about_budget(message: str) -> bool:
    """Return whether a condition's message says that the budget is spent, or may be spent."""
    return message.startswith((BUDGET_IS_SPENT, BUDGET_MAY_BE_SPENT))


def about_budget(decision: Decision) -> bool:
    """Return whether a run ends because its budget is spent, or may be spent."""
    return decision.condition is not None and is_about_budget(decision.condition.message)


def _ask(outcome: Outcome, what: str, now: int) -> Decision:
    return Decision(
        state=RunState.FAILED,
        reason=_say(outcome),
        condition=Condition(type="needs_person", message=what, at=now),
    )


def _say(outcome: Outcome) -> str:
    if outcome.detail:
        return f"{outcome.kind}: {outcome.detail}"
    return str(outcome.kind)


def limit_end(outcome: Outcome, now: int) -> int | None:
    """Return when a usage limit ends or ended, in ms; None if no plausible time is known."""
    if outcome.kind is OutcomeKind.RATE_LIMITED:
        until = outcome.until
    else:
        until = None
    if until is None or until <= now + FURTHEST_MS:
        return until
    return None


def _when(outcome: Outcome, tally: Tally, now: int, jitter: float) -> int:
    """Return when the next attempt is due, in ms: at the end of the limit, immediately, or after a
    growing delay."""
    limited_until = limit_end(outcome, now)
    if limited_until is not None and limited_until > now:
        return limited_until
    if outcome.kind in AT_ONCE:
        return now
    tries = max(tally.free if outcome.kind in FREE or tally.unbegun else tally.counted, 1)
    # The reported end of the limit has passed, so the limit should be over. A short delay is still
    # needed. If the reported time was wrong, immediate retries would soon reach `FREE_LIMIT`.
    if limited_until is not None:
        base = 1.0
    else:
        base = _BACKOFF_S.get(outcome.kind, 1.0)
    delay_s = min(base * 4 ** min(tries - 1, 8), _BACKOFF_CAP_S)
    return now + int(delay_s * 1000 * (0.8 + 0.4 * jitter))
