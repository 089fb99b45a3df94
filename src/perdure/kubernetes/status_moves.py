"""Functions that return a changed TaskRun status, for example after an attempt began or ended.
Pure. `step` decides when to call them.

After an attempt, `lifecycle.decide` decides what follows, as it does for a local run.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from perdure.kubernetes import requests
from perdure.kubernetes.objects import MergePatch, UntrustedObject, written
from perdure.kubernetes.outcomes import ADVICE, UNTIMED, End, Obstacle
from perdure.kubernetes.result import AttemptResult
from perdure.kubernetes.snapshot import JobSeen, PodSeen
from perdure.kubernetes.spec import Spec
from perdure.kubernetes.status import (
    FINAL,
    MOST_RECORDS,
    AttemptStatus,
    ReceiptSummary,
    StatusCondition,
    TaskRunStatus,
    UsageStatus,
    WorkspaceStatus,
    WorkStatus,
    is_counted,
    safe_line,
    stamp,
    tally,
    used_up,
)
from perdure.kubernetes.wanted import WantedRun
from perdure.model import (
    ContinuityPolicy,
    OutcomeKind,
    RunState,
    Usage,
)
from perdure.rules.lifecycle import NEEDS_PERSON, about_budget, decide

PLACING = "its pod is being placed"
PHASES = {
    RunState.QUEUED: "Queued",
    RunState.SUCCEEDED: "Succeeded",
    RunState.FAILED: "Failed",
    RunState.CANCELLED: "Cancelled",
}


def begun(status: TaskRunStatus, number: int, run: WantedRun, now: int) -> TaskRunStatus:
    """Return the status with one more open attempt. This status is written before any object of the
    attempt is created."""
    record = AttemptStatus(
        number=number,
        job=run.job(number),
        context_version=status.context_version,
        started=stamp(now),
    )
    status = replace(
        status,
        phase="Queued",
        attempt=number,
        run_after="",
        reason=PLACING,
        attempts=(*status.attempts, record),
    )
    return _trimmed(_without(status, "NeedsPerson", "Waiting", "UnsavedWork", now=now))


def closed(
    status: TaskRunStatus, end: End, run: WantedRun, now: int, jitter: float
) -> TaskRunStatus:
    """Return the status after the end of the open attempt: with the attempt's outcome and the phase
    that follows from it."""
    record, result = status.attempts[-1], end.result
    asked = run.spec.suspend or run.deleting
    record = replace(
        _placed(record, None, end.pod),
        ended=stamp(now),
        outcome=str(end.outcome.kind),
        detail=safe_line(end.outcome.detail),
        infrastructure=end.infrastructure,
        exit_code=end.outcome.code
        if end.pod is None or end.pod.ended is None
        else end.pod.ended.code,
    )
    if result is not None:
        record = replace(
            record,
            session_id=_id(result.session_id) or record.session_id,
            receipt=_verdict(result),
            work=_work(result),
            usage=_usage_status(result.usage),
        )
    status = _filled_in(replace(status, attempts=(*status.attempts[:-1], record)), result)
    status = _learnt(status, record, result, run)
    status = _without(status, "Waiting", now=now)
    decision = decide(
        end.outcome, tally(status, run.spec), _policy(run.spec, end.outcome.kind), now, jitter
    )
    phase, after, reason = PHASES[decision.state], decision.run_after, decision.reason
    newer = max(status.context_version, run.spec.context_version) > record.context_version
    status = requests.with_requests(status, result, run.uid)
    if (
        newer
        and decision.state is not RunState.QUEUED
        and end.outcome.kind is not OutcomeKind.CANCELLED
        and not about_budget(decision)
    ):
        phase, after, reason = "Queued", now, "new instructions came while it ran"
    elif status.asks and phase == "Failed" and not asked:
        phase, after = "Pending", requests.expiry(status.requests)
        message = f"{reason}. {requests.asking(status, run.name)}"
        status = with_condition(status, "NeedsPerson", camel(end.outcome.kind), message, now)
    elif decision.condition is not None:
        advice = decision.condition.message
        if advice == NEEDS_PERSON.get(end.outcome.kind):
            advice = ADVICE.get(end.outcome.kind, advice)
        status = with_condition(
            status,
            "NeedsPerson",
            camel(end.outcome.kind),
            f"{decision.reason}. {advice}",
            now,
        )
    if newer:
        status = reset_allowed(status, run.spec)
    if phase != "Pending":
        answered = tuple(each for each in status.requests if each.answer is not None)
        status = replace(status, requests=answered)
    if asked and phase in ("Queued", "Cancelled"):
        phase, after, reason = "Suspended", 0, "stopped on request"
    return settled(
        replace(
            status,
            phase=phase,
            run_after=stamp(after) if phase in ("Queued", "Pending") else "",
            reason=safe_line(reason),
        ),
        now,
    )


def answered(status: TaskRunStatus, now: int) -> TaskRunStatus:
    """Return the status after the last open request was answered: the next attempt may begin."""
    status = _without(status, "NeedsPerson", now=now)
    reason = "the agent's requests were answered"
    return settled(replace(status, phase="Queued", run_after=stamp(now), reason=reason), now)


def without_requests(status: TaskRunStatus, now: int) -> TaskRunStatus:
    """Return the status without requests, and without answers that no attempt has used. Called when
    something other than an answer makes the TaskRun continue, such as a retry. The requests in the
    pod's database are then closed too."""
    if status.asks:
        status = replace(_without(status, "NeedsPerson", now=now), run_after="")
    return replace(status, requests=())


def settled(status: TaskRunStatus, now: int) -> TaskRunStatus:
    """Return the status with the completion time and the conditions that follow from the phase.
    Complete and Failed are for `kubectl wait`. Reconciling and Stalled are for tools that read the
    state of any resource (kstatus)."""
    if status.phase not in FINAL:
        status = replace(status, completion_time="")
    elif not status.completion_time:
        status = replace(status, completion_time=stamp(now))
    last = status.attempts[-1].outcome if status.attempts else ""
    if status.phase == "Succeeded":
        reason = "Succeeded"
    elif status.phase in ("Failed", "Cancelled") and last:
        reason = camel(last)
    else:
        reason = status.phase
    failed = status.phase in ("Failed", "Cancelled")
    holding = {
        "Complete": status.phase == "Succeeded",
        "Failed": failed,
        "Reconciling": status.phase not in FINAL and status.phase != "Suspended",
        "Stalled": failed,
    }
    for kind, holds in holding.items():
        status = with_condition(status, kind, reason or "Pending", status.reason, now, holds=holds)
    return status


def reopened(status: TaskRunStatus, reason: str, now: int, more: int = 1) -> TaskRunStatus:
    """Return the status in phase Queued, so that the next attempt may begin immediately. At least
    `more` further attempts are allowed."""
    status = _without(replace(status, requests=()), "NeedsPerson", "Waiting", now=now)
    status = allowed_more(status, more)
    return settled(replace(status, phase="Queued", run_after=stamp(now), reason=reason), now)


def allowed_more(status: TaskRunStatus, more: int = 1) -> TaskRunStatus:
    """Return the status with at least `more` attempts allowed in addition to those used up and the
    open one."""
    return replace(
        status,
        attempts_allowed=max(
            status.attempts_allowed, used_up(status) + (status.open is not None) + more
        ),
    )


def reset_allowed(status: TaskRunStatus, spec: Spec) -> TaskRunStatus:
    """Return the status with all attempts of `spec.policy.attempts` available again, for new
    instructions. This is called once more when a running attempt ends, because that attempt still
    used the earlier instructions."""
    return replace(status, attempts_allowed=used_up(status) + spec.policy.attempts)


def refused(status: TaskRunStatus, reason: str, message: str, now: int) -> TaskRunStatus:
    """Return the status of a TaskRun that failed while no attempt was open, for example because its
    spec is invalid. The status has the condition NeedsPerson."""
    status = with_condition(
        _without(status, "Waiting", now=now), "NeedsPerson", reason, message, now
    )
    status = replace(status, phase="Failed", run_after="", requests=())
    return settled(replace(status, reason=safe_line(message)), now)


def waits(status: TaskRunStatus, obstacle: Obstacle, now: int) -> TaskRunStatus:
    """Return the status with the condition Waiting. The condition's time is the start of the whole
    wait, even if the reason for the wait has changed. One exception: if the new reason has a time
    limit and the earlier one had none, the time starts again."""
    was = status.condition("Waiting")
    if was is not None and was.reason in UNTIMED and obstacle.reason not in UNTIMED:
        status = without_waiting(status, now)
    return with_condition(status, "Waiting", obstacle.reason, obstacle.message, now)


def without_waiting(status: TaskRunStatus, now: int) -> TaskRunStatus:
    """Return the status without the condition Waiting."""
    return _without(status, "Waiting", now=now)


def with_foreign_pods(status: TaskRunStatus, sentence: str, now: int) -> TaskRunStatus:
    """Return the status with the condition Foreign, which reports pods that only look like the
    TaskRun's. An empty sentence removes the condition."""
    if sentence:
        return with_condition(status, "Foreign", "NotOwned", sentence, now)
    return _without(status, "Foreign", now=now)


def placed(status: TaskRunStatus, job: JobSeen | None, pod: PodSeen | None) -> TaskRunStatus:
    """Return the status with the names of the open attempt's Job, pod, node and claim."""
    if pod is not None and pod.claim:
        status = replace(status, workspace=replace(status.workspace, claim_name=pod.claim))
    return replace(status, attempts=(*status.attempts[:-1], _placed(status.attempts[-1], job, pod)))


def with_session(status: TaskRunStatus, session_id: str) -> TaskRunStatus:
    """Return the status with the id of the open attempt's conversation, which the pod's log named.
    Return the status unchanged if `session_id` is empty."""
    if not session_id:
        return status
    record = replace(status.attempts[-1], session_id=_id(session_id))
    attempts = (*status.attempts[:-1], record)
    return replace(status, attempts=attempts, session_id=record.session_id)


def with_condition(
    status: TaskRunStatus, type: str, reason: str, message: str, now: int, *, holds: bool = True
) -> TaskRunStatus:
    """Return the status with a condition set. The transition time changes only if the condition's
    value (true or false) changes."""
    was = next((each for each in status.conditions if each.type == type), None)
    word = "True" if holds else "False"
    if was is not None and was.status == word and was.last_transition_time:
        since = was.last_transition_time
    else:
        since = stamp(now)
    condition = StatusCondition(
        type=type,
        status=word,
        observed_generation=was.observed_generation if was is not None else 0,
        reason=reason,
        message=safe_line(message),
        last_transition_time=since,
    )
    return replace(
        status, conditions=(*(each for each in status.conditions if each.type != type), condition)
    )


def patch(was: UntrustedObject, status: TaskRunStatus) -> MergePatch:
    """Return the merge patch that changes the stored status `was` to this status; empty if the two
    are equal."""
    now: MergePatch = msgspec.json.decode(msgspec.json.encode(status))
    changed = {name: value for name, value in now.items() if was.get(name) != value}
    for name in ("workspace", "usage"):
        old = was.get(name)
        if name in changed and isinstance(old, dict):
            # A merge patch keeps fields that it does not mention, so removed fields are set to
            # null.
            removed = set(old) - set(changed[name])
            changed[name] = dict.fromkeys(removed) | changed[name]
    return changed | {name: None for name in was if name not in now}


def camel(words: str) -> str:
    """Convert a name such as `auth_failed` to the form that Kubernetes uses for reasons:
    `AuthFailed`."""
    return "".join(part.capitalize() for part in words.split("_"))


def _trimmed(status: TaskRunStatus) -> TaskRunStatus:
    """Return the status with only its newest attempt records. Dropped attempts are still counted,
    in `used_before`."""
    over = status.attempts[:-MOST_RECORDS]
    return replace(
        status,
        attempts=status.attempts[len(over) :],
        used_before=status.used_before + sum(map(is_counted, over)),
    )


def _placed(record: AttemptStatus, job: JobSeen | None, pod: PodSeen | None) -> AttemptStatus:
    if job is not None:
        record = replace(record, job=job.name, job_uid=job.uid)
    if pod is None:
        return record
    return replace(record, pod=pod.name, node=pod.node or record.node)


def _learnt(
    status: TaskRunStatus, record: AttemptStatus, result: AttemptResult | None, run: WantedRun
) -> TaskRunStatus:
    """Return the status with facts about the whole run that the attempt reported at its end, such
    as workspace, usage and verdicts."""
    volume = run.spec.workspace
    # An attempt without a result may still have done work: its Job may have come and gone while no
    # operator was running.
    workspace = replace(status.workspace, saved=False, checkpoints=volume.checkpoints)
    if result is not None:
        place = result.workspace
        workspace = WorkspaceStatus(
            claim_name=workspace.claim_name,
            path=safe_line(place.path, 1000) or workspace.path,
            branch=safe_line(place.branch, 250) or workspace.branch,
            commit=safe_line(place.commit, 64) or workspace.commit,
            checkpoints=volume.checkpoints,
            saved=result.saved,
        )
        total = status.usage.usage + result.usage
        status = replace(
            status,
            usage=_usage_status(total),
            session_id=_id(result.session_id) or status.session_id,
        )
    verdict = record.receipt.verdict if record.receipt is not None else ""
    # Without a result, nothing is known about the attempt's work.
    work = record.work.verdict if record.work is not None else ""
    return replace(status, workspace=workspace, receipt=verdict or status.receipt, work=work)


def _filled_in(status: TaskRunStatus, result: AttemptResult | None) -> TaskRunStatus:
    """Return the status, completed with the receipts and conversations of attempts that ended
    without a result of their own. The `result` of a later attempt contains them. Outcomes are not
    changed."""
    if result is not None:
        before = {each.number: each for each in result.earlier}
    else:
        before = {}

    def fill(record: AttemptStatus) -> AttemptStatus:
        known = before.get(record.number)
        if known is None or not record.outcome:
            return record
        if known.verdict is not None and record.receipt is None:
            record = replace(record, receipt=ReceiptSummary(verdict=str(known.verdict)))
        return replace(record, session_id=record.session_id or _id(known.session_id))

    return replace(status, attempts=tuple(map(fill, status.attempts)))


def _policy(spec: Spec, kind: OutcomeKind) -> ContinuityPolicy:
    """Return the continuity policy that applies to an outcome, as in `engine.attempt.finish`. If
    the conversation is too long, `strict` forbids a new conversation but lets the agent compact the
    old one."""
    if kind is not OutcomeKind.CONTEXT_EXHAUSTED:
        return spec.policy.continuity
    when, strict = spec.policy.when_full, spec.policy.continuity is ContinuityPolicy.STRICT
    if when == "stop" or (strict and when == "roll-over"):
        return ContinuityPolicy.STRICT
    return ContinuityPolicy.DISCLOSE


def _without(status: TaskRunStatus, *types: str, now: int) -> TaskRunStatus:
    for each in types:
        if status.condition(each) is not None:
            status = with_condition(status, each, "Resolved", "", now, holds=False)
    return status


def _verdict(result: AttemptResult) -> ReceiptSummary | None:
    receipt = result.receipt
    if receipt is None:
        return None
    reasons: Sequence[str] = receipt.reasons
    return ReceiptSummary(
        verdict=str(receipt.verdict),
        rung=str(receipt.rung),
        reasons=tuple(safe_line(each, 1000) for each in reasons[:16]),
    )


def _work(result: AttemptResult) -> WorkStatus | None:
    work = result.work
    if work is None:
        return None
    return WorkStatus(
        verdict=str(work.verdict),
        reason=safe_line(work.reason, 1000),
        files=_bounded(work.files),
        commits=_bounded(work.commits),
        pushed=work.pushed,
        denied=_bounded(work.denied),
        question=safe_line(work.question, 1000),
    )


def _bounded(number: int) -> int:
    """Return a number that is limited to the range of an integer in the resource (int32). The agent
    in the pod could have written any number."""
    return min(max(number, 0), 2**31 - 1)


def _usage_status(usage: Usage) -> UsageStatus:
    cost = written(usage.cost_usd)
    return UsageStatus(input_tokens=usage.input, output_tokens=usage.output, cost=cost)


def _id(text: str) -> str:
    return safe_line(text, 200)
