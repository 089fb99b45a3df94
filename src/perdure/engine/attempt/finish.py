"""Ends an attempt. It determines the outcome, gathers the evidence, makes the receipt, runs the
check and decides how the run continues. It stores all of this with one call of the store's
`finish`. Called by `perform` and `take_over`.

Every attempt ends here, including one whose machine was lost. No other code stores an outcome.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from perdure.agents.transcripts import Copies, snapshot
from perdure.engine.attempt import budget
from perdure.engine.attempt.accounts import parkings
from perdure.engine.attempt.checkpoints import Checkpointing
from perdure.engine.attempt.context_fill import SizeChange, changes, size_after
from perdure.engine.attempt.engine import Engine, redacted, work_records
from perdure.engine.attempt.evidence import collect
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.messages import received_by_prompt
from perdure.engine.attempt.preparation import total_of
from perdure.engine.attempt.requests import asked, settle_refused
from perdure.engine.attempt.supervision import SupervisionResult
from perdure.engine.attempt.verification import failed_checks, missing_files_sentence, verify
from perdure.errors import PerdureError
from perdure.host import process
from perdure.model import (
    NO_COSTS,
    NO_USAGE,
    PUT_BACK,
    Attempt,
    Claim,
    Condition,
    ContinuityPolicy,
    Decision,
    Evidence,
    Fill,
    Measure,
    OnDenied,
    Outcome,
    OutcomeKind,
    Receipt,
    ReplyCosts,
    Session,
    SessionState,
    Start,
    TaskRun,
    Usage,
    Verdict,
)
from perdure.model.events import (
    AnyEvent,
    CollisionSeen,
    Record,
    RolledOver,
    SessionRetired,
    TurnEnded,
)
from perdure.model.requests import AgentRequest
from perdure.protocols import Ending, RunStore, TellsRefusals
from perdure.rules.context_window import asks_for_person
from perdure.rules.crashes import loop
from perdure.rules.lifecycle import (
    FREE,
    UNCOUNTED,
    Tally,
    budget_is_over,
    decide,
    failed_by_itself,
)
from perdure.rules.receipt import REFUSED, judge
from perdure.rules.requests import detail, waiting
from perdure.rules.unfinished import judge as judge_turn
from perdure.rules.work_report import work_report

NO_BUDGET_TO_GO_ON = "the agent asked a person, but there is no budget left to go on"


def close(
    engine: Engine, opened: LiveAttempt, watched: SupervisionResult, checkpoints: Checkpointing
) -> TaskRun:
    """Store the end of the attempt and the run's next state, and return the run."""
    claim = opened.claim
    watched.reading.ends.settle(*settle_refused(engine.store, opened))
    outcome = judge_turn(
        opened.driver.outcome(watched.exit, watched.reading.for_classifier()),
        watched.reading.ends,
        OnDenied(claim.run.spec.on_denied or engine.on_denied),
    )
    if _refused_again(engine.store, opened, watched, outcome):
        outcome = replace(outcome, kind=OutcomeKind.SESSION_BROKEN)
    requests = asked(engine, opened, outcome, watched.reading.ends)
    if requests and requests[0].parked:
        outcome = replace(outcome, detail=detail(requests[0]))
    for name in ("stdout", "stderr"):
        engine.redactor.file(opened.directory / name)
    sized = size_after(
        engine.context,
        opened,
        watched.session,
        watched.reading.windows,
        answered=watched.reading.answered,
    )
    evidence = collect(opened, watched, engine.copies, outcome)
    evidence = replace(evidence, compactions=sized.compactions)
    receipt = judge(opened.asked, evidence)
    events: list[AnyEvent] = []
    if evidence.prompt_found:
        events += received_by_prompt(engine.store, claim)
    broken = receipt is not None and receipt.verdict is Verdict.BROKEN
    # The loss of a machine explains a damaged transcript, so the outcome stays `lost`. The next
    # attempt finds out which part is usable. If the agent refused the conversation, the outcome
    # keeps the agent's own message.
    known = outcome.kind is OutcomeKind.LOST
    known = known or (receipt is not None and receipt.reasons == (REFUSED,))
    if receipt is not None and broken and not known:
        outcome = Outcome(
            kind=OutcomeKind.SESSION_BROKEN
            if _refused(opened, evidence, outcome)
            else OutcomeKind.CONTINUITY_LOST,
            detail=receipt.reasons[0],
            code=outcome.code,
            signal=outcome.signal,
        )
    if watched.collided:
        outcome = replace(
            outcome,
            kind=OutcomeKind.CONTINUITY_LOST,
            detail="another program used the conversation; the policy is strict",
        )
    heard = evidence.answered or evidence.prompt_found or process.launched(opened.directory)
    # An adopted attempt does not count as a try if its agent never started. If this supervisor
    # launched the agent itself, the attempt counts. If it did not count, an agent that cannot start
    # would be launched forever.
    if outcome.kind is OutcomeKind.LOST and not heard and opened.adopted:
        outcome = replace(
            outcome, detail="perdure was ended before its agent had started", began=False
        )
    if outcome.ok and (
        lacks := missing_files_sentence(claim.run.spec, Path(opened.workspace.path))
    ):
        outcome = Outcome(kind=OutcomeKind.FAILED, detail=lacks, code=0)
    if outcome.ok and claim.run.spec.verify:
        outcome, checked = verify(engine, opened)
        events += checked
    watched.meter.model = (sized.now.model if sized.now is not None else "") or watched.meter.model
    killed = watched.exit.cause in ("exited", "lost")
    used, costs = watched.meter.final_usage(watched.reading, killed=killed)
    unasked = not watched.reading.begun and _failed_first(opened, evidence, outcome)
    if evidence.refused or unasked:
        # The request was never sent, so no usage is estimated for it. Usage that the agent reported
        # still counts.
        costs = replace(costs, cut=())
        used = watched.meter.usage(watched.reading) if watched.reading.begun else NO_USAGE
    usage = used + budget.spent_on_summary(engine.store, claim.run, claim.attempt)
    sessions = _sessions(engine.store, engine.copies, opened, watched, receipt, evidence)
    lifetime_s = engine.session_lifetime_s
    sessions = tuple(each.used(engine.store.now(), lifetime_s) for each in sessions)
    sessions = tuple(_sized(session, sized, outcome, claim) for session in sessions)
    checkpoints.end("end")
    if checkpoints.work is not None:
        events.append(redacted(checkpoints.work, engine.redactor))
    for path in opened.directory.glob("conversation-*"):
        engine.redactor.file(path)
    for session in sessions:
        events += changes(
            opened.asked, session.id, sized.was, sized.now, answered=evidence.answered
        )
        if (
            outcome.kind is OutcomeKind.CONTEXT_EXHAUSTED
            and session.state is SessionState.RETIRED
            and sized.now is not None
        ):
            gone = RolledOver(
                session_id=session.id,
                tokens=sized.now.tokens,
                window=sized.now.window,
                cause=session.cause,
            )
            events.append(gone)
    for s in sessions:
        if s.state is SessionState.RETIRED:
            events.append(SessionRetired(session_id=s.id, cause=s.cause))
    collision = _collision(opened, evidence)
    if collision and not watched.other_writers:
        events.append(
            CollisionSeen(session_id=evidence.asked or evidence.returned, detail=collision)
        )
    engine.workspaces.flush(opened.workspace)
    return _finish(
        engine,
        claim,
        outcome,
        requests=requests if outcome.kind is OutcomeKind.NEEDS_INPUT else (),
        receipt=receipt,
        usage=usage,
        costs=costs,
        sessions=sessions,
        events=tuple(events),
        version=watched.reading.version,
        collision=collision,
        fill=sized.now,
        following=sized.following,
    )


def close_unopened(
    engine: Engine, claim: Claim, outcome: Outcome, used: Usage = NO_USAGE
) -> TaskRun:
    """Store the end of an attempt that did not launch its agent, or that ran on another host.
    Return the run in its new state. Usage that was already stored with the attempt is kept. `used`:
    additional usage, of a summary turn whose answer was never received."""
    attempts = engine.store.attempts(claim.run.id)
    stored = next(each.usage for each in attempts if each.number == claim.attempt)
    summary = budget.spent_on_summary(engine.store, claim.run, claim.attempt)
    return _finish(engine, claim, outcome, usage=stored + used + summary, following=Measure.STOP)


def _refused_again(
    store: RunStore, opened: LiveAttempt, watched: SupervisionResult, outcome: Outcome
) -> bool:
    """Return whether both this attempt and the previous one ended because the agent refused to open
    the conversation, with messages that its driver does not know. A single refusal may have a
    temporary cause."""
    driver, asked = opened.driver, opened.asked
    if not isinstance(driver, TellsRefusals) or asked.kind is not Start.RESUME:
        return False
    run, number = opened.claim.run, opened.claim.attempt
    before = next((a for a in store.attempts(run.id) if a.number == number - 1), None)
    if before is None or before.outcome is None or before.continuation is None:
        return False
    earlier = [each.event for each in store.attempt_history(run.id, before.number)]
    same = before.continuation.session_id == asked.session_id
    unknown = failed_by_itself(outcome) and failed_by_itself(before.outcome)
    refused = _refused_to_open(driver, watched.reading.kept) and _refused_to_open(driver, earlier)
    return same and unknown and refused


def _refused_to_open(driver: TellsRefusals, events: Sequence[AnyEvent]) -> bool:
    return any(driver.refused_to_open(each) for each in events if isinstance(each, TurnEnded))


def _refused(opened: LiveAttempt, evidence: Evidence, outcome: Outcome) -> bool:
    """Return whether the agent failed before its first turn. If so, the agent's work cannot be the
    cause of a changed transcript. For example, Gemini CLI 0.61.0 rewrites a transcript that it
    cannot read."""
    return (
        not outcome.ok
        and _unused(opened, evidence)
        and not evidence.foreign_turns
        and evidence.returned in ("", evidence.asked)
    )


def _failed_first(opened: LiveAttempt, evidence: Evidence, outcome: Outcome) -> bool:
    """Return whether the agent failed before it sent a request to its model, with a message that
    its driver does not know. Only for agents that save the prompt before they read the history."""
    first = opened.driver.abilities.saves_prompt_first and evidence.prompt_found is None
    return first and _unused(opened, evidence) and failed_by_itself(outcome)


def _unused(opened: LiveAttempt, evidence: Evidence) -> bool:
    """Return whether the agent was launched to resume the conversation, and nothing shows that it
    used the transcript."""
    goes_on = opened.asked.kind is Start.RESUME
    return goes_on and not evidence.answered and not evidence.prompt_found


def _sessions(
    store: RunStore,
    copies: Copies,
    opened: LiveAttempt,
    watched: SupervisionResult,
    receipt: Receipt | None,
    evidence: Evidence,
) -> tuple[Session, ...]:
    """Return a tuple with the session in its state after this attempt; empty if there is no
    session. The session is retired only if the receipt shows that the conversation is not the fork
    that was requested."""
    session = watched.session
    if session is None:
        return ()
    transcript = opened.transcript(session.id)
    found = snapshot(opened.driver, transcript)
    broken = receipt is not None and receipt.verdict is Verdict.BROKEN
    changed = evidence.known_kept is False and opened.asked.rung not in PUT_BACK
    changed = changed or broken or evidence.copy_kept is False
    # If the agent refuses its transcript, perdure's copy will replace the transcript. So a defect
    # that causes the refusal must not get into the copy.
    taken = not changed and not _unused(opened, evidence)
    if transcript is not None and found is not None and found.turns and taken:
        try:
            taken = copies.take(opened.driver, session.id, transcript)
        except PerdureError:
            taken = False
        found = found if taken else session.snapshot
    # If perdure cannot read the agent's transcript, an answer of the agent shows that the prompt
    # arrived.
    given = bool(evidence.prompt_found) or (
        evidence.answered and not opened.driver.abilities.transcripts
    )
    confirmed = session.state is SessionState.CONFIRMED or (
        given and session.id in (evidence.returned, evidence.asked)
    )
    cause = ""
    if (
        receipt is not None
        and receipt.verdict is Verdict.BROKEN
        and opened.asked.kind is Start.FORK
    ):
        cause = f"it is not a fork of {opened.asked.session_id}: {receipt.reasons[0]}"
    if cause:
        state = SessionState.RETIRED
    elif confirmed:
        state = SessionState.CONFIRMED
    else:
        state = SessionState.PINNED
    return (
        replace(
            session,
            state=state,
            cause=cause,
            tasks=session.tasks + _is_new_task(store, opened, session, evidence),
            context_version=opened.attempt.context_version if given else session.context_version,
            attempts=session.attempts + bool(evidence.answered),
            cwd=opened.workspace.path if given else session.cwd,
            total=watched.reading.total
            or (total_of(opened.driver, found) if found is not None else session.total),
            # The recorded state of the transcript is kept if the transcript was not judged, or was
            # judged to be changed.
            snapshot=(found if receipt is not None and not changed else None) or session.snapshot,
        ),
    )


def _is_new_task(
    store: RunStore, opened: LiveAttempt, session: Session, evidence: Evidence
) -> bool:
    """Return whether this is the run's first attempt whose prompt is in the conversation."""
    run = opened.claim.run
    if not evidence.prompt_found:
        return False
    for attempt in store.attempts(run.id):
        if attempt.number >= opened.attempt.number or attempt.session_id != session.id:
            continue
        if attempt.receipt is not None and attempt.receipt.evidence.prompt_found:
            return False
    return True


def _sized(session: Session, sized: SizeChange, outcome: Outcome, claim: Claim) -> Session:
    """Return the session with the present size of its conversation. The session is retired if the
    conversation is too long and a new one replaces it."""
    cause = session.cause or sized.cause(outcome, claim.run.spec.continuity)
    return replace(
        session,
        fill=sized.now or session.fill,
        cause=cause,
        state=SessionState.RETIRED if cause else session.state,
    )


def _collision(opened: LiveAttempt, evidence: Evidence) -> str:
    if evidence.foreign_turns:
        return (
            f"{evidence.foreign_turns} foreign prompt(s) came into the conversation "
            f"during attempt {opened.attempt.number}"
        )
    if evidence.other_writers:
        return f"another program used the conversation during attempt {opened.attempt.number}"
    if evidence.turns_since:
        return (
            f"{evidence.turns_since} foreign prompt(s) came into the conversation during "
            f"attempt {opened.attempt.number}, whose end was not observed, or after it"
        )
    if evidence.turns_between:
        return (
            f"{evidence.turns_between} foreign prompt(s) came into the conversation "
            f"before attempt {opened.attempt.number}"
        )
    return ""


def _finish(
    engine: Engine,
    claim: Claim,
    outcome: Outcome,
    *,
    requests: tuple[AgentRequest, ...] = (),
    receipt: Receipt | None = None,
    usage: Usage | None = None,
    costs: ReplyCosts = NO_COSTS,
    sessions: tuple[Session, ...] = (),
    events: tuple[AnyEvent, ...] = (),
    version: str = "",
    collision: str = "",
    fill: Fill | None = None,
    following: Measure = Measure.NONE,
) -> TaskRun:
    spent = usage or Usage()
    asked_to_end = outcome.kind is OutcomeKind.CANCELLED and engine.stopping()
    if asked_to_end and engine.leaving and not engine.store.get(claim.run.id).cancel_requested:
        outcome = replace(outcome, kind=OutcomeKind.LOST, detail=engine.leaving)
    outcome = replace(outcome, detail=engine.redactor.text(outcome.detail))
    now = engine.store.now()
    attempts = engine.store.attempts(claim.run.id)
    *earlier, attempt = [each for each in attempts if each.number <= claim.attempt]
    ended = replace(attempt, outcome=outcome, receipt=receipt, usage=spent, ended=now, fill=fill)
    ended = replace(ended, costs=costs)
    counted = tally(claim, earlier, ended, outcome)
    if requests and budget_is_over(counted):
        # An answer to a request would start an attempt with a new budget, which only `retry` may
        # do. So the requests are dropped, and the agent asks again in the attempt that `retry`
        # starts.
        requests = ()
        outcome = replace(outcome, kind=OutcomeKind.BUDGET_SPENT, detail=NO_BUDGET_TO_GO_ON)
        ended = replace(ended, outcome=outcome)
        counted = tally(claim, earlier, ended, outcome)
    policy = claim.run.spec.continuity
    if outcome.kind is OutcomeKind.CONTEXT_EXHAUSTED:
        # The strict policy forbids a new conversation, but allows compaction, because a compacted
        # conversation is still the same one.
        if asks_for_person(policy, following):
            policy = ContinuityPolicy.STRICT
        else:
            policy = ContinuityPolicy.DISCLOSE
    decision = decide(outcome, counted, policy, now, random.random())
    if requests:
        decision = waiting(outcome, requests, claim.run.name, now)
    if collision and decision.condition is None:
        decision = _with_condition(decision, Condition(type="collision", message=collision, at=now))
    ending = Ending(
        outcome=outcome,
        decision=decision,
        receipt=receipt,
        usage=spent,
        costs=costs,
        fill=fill,
        work=_verdict(engine.store, ended, events),
        agent_version=version,
        sessions=sessions,
        events=events,
        requests=requests,
        parkings=parkings(engine.store, claim.run, ended, now),
    )
    return engine.store.finish(claim, ending)


def _verdict(store: RunStore, ended: Attempt, events: tuple[AnyEvent, ...]) -> str:
    """Return the verdict on the attempt's work. It is derived from the journal and from `events`,
    which will be stored in the journal next."""
    records = work_records(store, ended)
    coming = (Record(ended.run, 0, ended.number, 0, event) for event in events)
    return str(work_report(ended, [*records, *coming]).verdict or "")


def _with_condition(decision: Decision, condition: Condition) -> Decision:
    return replace(decision, condition=condition)


def tally(claim: Claim, earlier: list[Attempt], ended: Attempt, outcome: Outcome) -> Tally:
    """Return the figures from which the run's next step is decided. `ended`: the attempt that just
    ended, with its `outcome`."""
    run = claim.run
    kinds = []
    for attempt in (*earlier, replace(ended, outcome=outcome)):
        if attempt.outcome is not None:
            kinds.append(_counted_as(attempt))
    free = 0
    for kind in reversed(kinds):
        if kind is not None and kind not in FREE:
            break
        free += 1
    return Tally(
        counted=sum(kind is not None and kind not in UNCOUNTED for kind in kinds),
        free=free,
        unbegun=kinds[-1] is None,
        allowed=run.attempts_allowed,
        spent_usd=budget.spent([*earlier, ended], run.spec.model),
        reserve=budget.reserved([*earlier, ended]),
        budget_usd=run.spec.budget_usd,
        rounds=failed_checks(earlier, run.context_version)
        + (outcome.kind is OutcomeKind.VERIFY_FAILED),
        rounds_allowed=run.spec.verify_rounds,
        loop=loop([*earlier, ended]),
    )


def _counted_as(attempt: Attempt) -> OutcomeKind | None:
    """Return the kind of the attempt's outcome. Return None for an attempt that was lost before its
    agent started, for example because the server restarted. Such an attempt says nothing about the
    task."""
    assert attempt.outcome is not None
    outcome = attempt.outcome
    if outcome.kind is OutcomeKind.LOST and (attempt.continuation is None or not outcome.began):
        return None
    return outcome.kind
