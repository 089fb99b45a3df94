"""The state machine of a run: which trigger leads where, and what follows an outcome. Pure.

The store makes `advance` true under races (compare-and-set, and a trigger in the schema); `attempt`
and `service` ask `decide` what comes next. `docs/state_machine.md` is the picture of `MOVES`.
"""

from __future__ import annotations

from enum import StrEnum

from perdure.lateclass import dataclass
from perdure.model import Condition, ContinuityPolicy, Decision, Outcome, OutcomeKind, RunState


class Trigger(StrEnum):
    """What can happen to a run."""

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
    """The state that the trigger leads to. Raises ValueError where the machine has no such move."""
    try:
        return MOVES[state, trigger]
    except KeyError:
        raise ValueError(f"a run that is {state} cannot {trigger}") from None


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
"""Outcomes that say nothing about the task: they do not use up the attempts that were asked for."""

UNCOUNTED = FREE | {OutcomeKind.VERIFY_FAILED}
"""What uses up no attempt: the free ones, and failed checks, which have a limit of their own
(`verify_rounds`)."""

FREE_LIMIT = 20
"""As many free attempts in a row end the run all the same: something is wrong that time does not
mend."""

NEEDS_PERSON = {
    OutcomeKind.AUTH_FAILED: (
        "the agent has no valid credentials: log in with the agent's own program, then perdure "
        "retry"
    ),
    OutcomeKind.CONFIG_ERROR: (
        "the agent or its workdir is not set up as the run needs it: mend it, then perdure retry"
    ),
    OutcomeKind.BUDGET_SPENT: "the budget is spent: perdure retry --budget-usd raises it",
    OutcomeKind.NEEDS_INPUT: (
        "the agent waits for you: answer with perdure update; where a call was denied, allow it "
        "(--permissions, or the agent's own settings), then perdure retry"
    ),
    OutcomeKind.DENIED: (
        "a tool call of the agent was denied: allow it (--permissions, or the agent's own "
        "settings), then perdure retry"
    ),
    OutcomeKind.REFUSED: (
        "the model refused: say it in other words with perdure update, or choose another model "
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
LOST_CONVERSATION = frozenset({OutcomeKind.CONTINUITY_LOST, OutcomeKind.CONTEXT_EXHAUSTED})

NOT_ON = (
    "the conversation did not go on, and the policy is strict: perdure why says why; perdure retry "
    "--continuity disclose goes on in a new conversation with a brief of what was done"
)
TOO_LONG = (
    "the conversation is too long for its model, and nothing may be done about it by itself: "
    "perdure why tells its size; PERDURE_WHEN_FULL=compact perdure retry has the agent shorten it, "
    "perdure open lets you do it by hand"
)

_BACKOFF_S = {
    OutcomeKind.OVERLOADED: 30.0,
    OutcomeKind.RATE_LIMITED: 900.0,
    OutcomeKind.WRITER_CONFLICT: 15.0,
}
_BACKOFF_CAP_S = 900.0
FURTHEST_MS = 400 * 86_400_000
"""A limit that is said to end later than this is not believed: a wrong clock, or a time that was
misread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the attempts so far add up to, this one included."""

    counted: int
    """Attempts that used up one of those allowed."""
    free: int
    """Free attempts in a row, up to and with this one."""
    allowed: int
    spent_usd: float = 0.0
    budget_usd: float = 0.0
    rounds: int = 0
    """Failed checks of the newest instructions, this one included."""
    rounds_allowed: int = 0
    """So many of them go back to the agent."""
    unbegun: bool = False
    """This attempt was lost before its agent was started: free, like the outcomes in `FREE`."""
    loop: str = ""
    """That the newest attempts crash and crash again, and nothing comes of them, in a sentence;
    empty where they do not."""


def decide(
    outcome: Outcome, tally: Tally, policy: ContinuityPolicy, now: int, jitter: float = 0.5
) -> Decision:
    """What follows an attempt. `now` in ms; `jitter` in [0, 1) spreads the delays by a fifth to
    either side."""
    kind = outcome.kind
    if kind is OutcomeKind.SUCCEEDED:
        return Decision(state=RunState.SUCCEEDED)
    if kind is OutcomeKind.CANCELLED:
        return Decision(state=RunState.CANCELLED, reason=outcome.detail or "stopped on request")
    if kind in NEEDS_PERSON:
        return _ask(outcome, NEEDS_PERSON[kind], now)
    if kind in LOST_CONVERSATION and policy is ContinuityPolicy.STRICT:
        return _ask(outcome, TOO_LONG if kind is OutcomeKind.CONTEXT_EXHAUSTED else NOT_ON, now)
    if tally.budget_usd and tally.spent_usd >= tally.budget_usd:
        return _ask(outcome, NEEDS_PERSON[OutcomeKind.BUDGET_SPENT], now)
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
        return _ask(outcome, f"{tally.loop}: mend the cause, then perdure retry", now)
    return Decision(
        state=RunState.QUEUED, run_after=_when(outcome, tally, now, jitter), reason=_say(outcome)
    )


def _check_again(outcome: Outcome, tally: Tally, now: int) -> Decision:
    """A failed check goes back to the agent at once, as often as was asked for; then the run has
    failed, with the evidence."""
    if tally.rounds <= tally.rounds_allowed:
        return Decision(state=RunState.QUEUED, run_after=now, reason=_say(outcome))
    gone_back = (
        f"it went back to the agent {tally.rounds - 1} time(s), as often as verify_rounds allows"
    )
    return Decision(state=RunState.FAILED, reason=f"{_say(outcome)}; {gone_back}")


def _ask(outcome: Outcome, what: str, now: int) -> Decision:
    return Decision(
        state=RunState.FAILED,
        reason=_say(outcome),
        condition=Condition(type="needs_person", message=what, at=now),
    )


def _say(outcome: Outcome) -> str:
    return f"{outcome.kind}: {outcome.detail}" if outcome.detail else str(outcome.kind)


def limit_end(outcome: Outcome, now: int) -> int | None:
    """When a usage limit ends, or ended, where that was said and can be believed."""
    until = outcome.until if outcome.kind is OutcomeKind.RATE_LIMITED else None
    return until if until is None or until <= now + FURTHEST_MS else None


def _when(outcome: Outcome, tally: Tally, now: int, jitter: float) -> int:
    """When the next attempt is due: at the limit's own end, at once, or after a growing delay."""
    limited_until = limit_end(outcome, now)
    if limited_until is not None and limited_until > now:
        return limited_until
    if outcome.kind in AT_ONCE:
        return now
    tries = max(tally.free if outcome.kind in FREE or tally.unbegun else tally.counted, 1)
    # A limit whose end is past should be over: soon again, but not all free attempts at once where
    # the time was wrong.
    base = 1.0 if limited_until is not None else _BACKOFF_S.get(outcome.kind, 1.0)
    delay_s = min(base * 4 ** min(tries - 1, 8), _BACKOFF_CAP_S)
    return now + int(delay_s * 1000 * (0.8 + 0.4 * jitter))
