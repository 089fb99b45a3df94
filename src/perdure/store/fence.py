"""The rules that every write to a run must pass. The fence checks that a claim is still valid.
Other functions keep two runs from sharing a workdir or conversation at the same time, and end a run
or queue it again.

Called inside a transaction (`Write`), by `sql` for attempts and instructions and by `writes` for
checkpoints and removals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.errors import Conflict, LostLease
from perdure.model import (
    NOTHING_GIVEN,
    UNSAVED,
    Attempt,
    Claim,
    Condition,
    Context,
    Given,
    RunState,
    TaskRun,
    TaskSpec,
)
from perdure.model.requests import AnswerKind
from perdure.rules.lifecycle import ENDED_BY, FINAL, Trigger, about_budget, advance
from perdure.rules.requests import WAITING
from perdure.store.requests import EVERY_ANSWER, NO_ANSWER, supersede
from perdure.store.rows import MAX_TIME, given_of, noun_of, run_of
from perdure.store.transaction import Write

if TYPE_CHECKING:
    from perdure.protocols import Ending

NEW_INSTRUCTIONS = "new instructions"


def require_claim(write: Write, claim: Claim) -> TaskRun:
    """Return the run of the claim. Raises LostLease if the claim is no longer valid. Every claimed
    write calls this first."""
    row = write.one("held", id=claim.run.id, attempt=claim.attempt, worker=claim.worker)
    if row is None:
        raise lost_lease(claim)
    return run_of(row)


def require_not_running(write: Write, run_id: str) -> TaskRun:
    """Return the run. Raises Conflict if an attempt of it has begun and is still running.

    An attempt that is only claimed does not count: it waits for the workdir's lock, which the
    caller holds.
    """
    run = run_of(write.named(run_id))
    if (
        run.state is RunState.RUNNING
        and noun_of(
            write.one("attempt", run=run.id, number=run.attempt)["body"], Attempt
        ).continuation
    ):
        raise Conflict(f"{run.name} is running (attempt {run.attempt})", f"perdure stop {run.name}")
    return run


def lost_lease(claim: Claim) -> LostLease:
    name = claim.run.name
    return LostLease(
        f"This worker no longer holds attempt {claim.attempt} of {name}; nothing was stored",
        f"perdure show {name}",
    )


def same_task(write: Write, spec: TaskSpec, given: Given) -> TaskRun | None:
    """Return the run that has the same key, or None. Raises Conflict if that run has another spec
    or other task files."""
    row = write.one("run_by_key", ref=spec.key) if spec.key else None
    if row is None:
        return None
    run = run_of(row)
    if run.spec != spec:
        raise Conflict(
            f"The key {spec.key!r} belongs to {run.name}, which has another task",
            f"perdure show {run.name}",
        )
    if given_of(write.one("first_context", run=run.id)) != given:
        raise Conflict(
            f"The key {spec.key!r} belongs to {run.name}, which was given other files",
            f"perdure show {run.name} --json",
        )
    return run


def refuse_beside(write: Write, run_id: str, workspace_id: str, agent: str, scope: str) -> None:
    row = write.one(
        "running_beside", id=run_id, workspace_id=workspace_id, agent=agent, scope=scope
    )
    if row is not None:
        if row["workspace_id"] == workspace_id:
            shared = f"the workdir {row['place']}"
        else:
            shared = f"the conversation {agent}/{scope}"
        raise Conflict(
            f"{row['name']} is running in {shared} (attempt {row['attempt']})",
            f"perdure logs -f {row['name']}",
        )


def more_attempts(run: TaskRun, more: int = 1) -> int:
    """Return the run's new maximum number of attempts after a person has allowed `more` attempts
    beyond those already made. The maximum never decreases."""
    return max(run.attempts_allowed, run.attempt + more)


def next_state(
    run: TaskRun, attempt: Attempt, ending: Ending, now: int
) -> tuple[RunState, int, str]:
    """Return the new state, `run_after` and reason of a run whose attempt has ended.

    These follow the attempt's decision, with two exceptions. If a person added instructions during
    the attempt, the run is queued again, unless its budget is spent, because then only a person may
    spend more. If a person stopped the run, it is never queued again, not even for new
    instructions.
    """
    decision = ending.decision
    state, run_after, reason = decision.state, decision.run_after, decision.reason
    if (
        run.context_version > attempt.context_version
        and state in FINAL
        and state is not RunState.CANCELLED
        and not about_budget(decision)
    ):
        state, run_after, reason = RunState.QUEUED, now, "new instructions came while it ran"
    if run.cancel_requested and state is RunState.QUEUED:
        return RunState.CANCELLED, now, "stopped on request"
    return state, run_after, reason


def settle(
    write: Write,
    run: TaskRun,
    state: RunState,
    run_after: int,
    reason: str,
    condition: Condition | None = None,
) -> TaskRun:
    """Change the state of a run whose attempt ended, record the change in the journal, and return
    the run. Raises ValueError if the state machine has no such transition."""
    from perdure.model.codec import encode
    from perdure.model.events import RunFinished, RunQueued

    state = advance(run.state, ENDED_BY[state])
    run_after = min(run_after, MAX_TIME)
    if state in FINAL:
        # A person can retry a run that failed, and its unused approvals stay valid for that.
        answers = EVERY_ANSWER if state is RunState.CANCELLED else NO_ANSWER
        supersede(write, run.id, reason or f"the run has {state}", answers=answers)
    row = write.one(
        "settle",
        id=run.id,
        state=str(state),
        run_after=run_after,
        reason=reason,
        now=write.now,
        conditions=encode(updated_conditions(run, state, condition)),
        finished=write.now if state in FINAL else None,
    )
    write.note(
        run.id,
        0,
        [
            RunFinished(state=state, reason=reason)
            if state in FINAL
            else RunQueued(reason=reason, run_after=run_after)
        ],
    )
    return run_of(row)


def instruct(
    write: Write, run_id: str, text: str, given: Given = NOTHING_GIVEN, message: str = ""
) -> TaskRun:
    """Append a version of the instructions, and return the run. A run is queued if it was over, or
    if it waited for a person's answer. Open requests and unused approvals are superseded.

    If a message with the same key and text was stored before, nothing is changed. Raises NotFound,
    and Conflict if the key was used with another text.
    """
    from perdure.model.events import ContextAdded

    run = run_of(write.named(run_id))
    known = write.one("message", run=run.id, message=message) if message else None
    if known is not None:
        if known["text"] != text:
            raise Conflict(
                f"{run.name} was told another message with this key", "choose another --key"
            )
        return run
    # An approval is for a call of the earlier instructions. A refusal and an answer to a question
    # stay true.
    supersede(write, run.id, NEW_INSTRUCTIONS, answers=frozenset({AnswerKind.ALLOW}))
    version = run.context_version + 1
    write.put_context(run.id, Context(version, text, write.now, given, message))
    write.note(run.id, 0, [ContextAdded(version=version, message=bool(message))])
    row = write.one(
        "instruct",
        id=run.id,
        context_version=version,
        attempts_allowed=more_attempts(run),
        now=write.now,
    )
    waits = any(each.type == WAITING for each in run.conditions)
    waits = waits and run.state is RunState.QUEUED
    if run.state in FINAL or waits:
        return reopen(write, run, NEW_INSTRUCTIONS)
    return run_of(row)


def reopen(write: Write, run: TaskRun, reason: str, more: int = 1) -> TaskRun:
    """Queue a run that has no attempt in progress, allow `more` further attempts, and return the
    run. The run is due immediately, even if it was queued for a later time. Raises ValueError if
    the state machine has no such transition."""
    from perdure.model.codec import encode
    from perdure.model.events import RunQueued

    supersede(write, run.id, reason)
    if run.state is not RunState.QUEUED:
        advance(run.state, Trigger.REOPEN)
    conditions = encode(updated_conditions(run, RunState.QUEUED, None))
    row = write.one(
        "reopen",
        id=run.id,
        reason=reason,
        conditions=conditions,
        attempts_allowed=more_attempts(run, more),
        now=write.now,
    )
    write.note(run.id, 0, [RunQueued(reason=reason, run_after=write.now)])
    return run_of(row)


def updated_conditions(
    run: TaskRun, state: RunState, new: Condition | None
) -> tuple[Condition, ...]:
    """Return the run's conditions together with `new`, at most one of each type. Conditions that no
    longer hold in the state `state` are dropped."""
    kept = {condition.type: condition for condition in (*run.conditions, *([new] if new else []))}
    if new is None or new.type != WAITING:
        kept.pop(WAITING, None)
    if state in (RunState.QUEUED, RunState.SUCCEEDED):
        kept.pop("needs_person", None)
    if state is RunState.QUEUED:
        # The condition says that the run's work was cancelled on the forge. A run that is queued
        # again has work again.
        kept.pop("withdrawn", None)
        # The workdir is in use again, and the next clean-up will check it again.
        kept.pop(UNSAVED, None)
    return tuple(kept.values())
