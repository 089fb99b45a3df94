"""The status of a TaskRun, and how it moves: an attempt begins, ends, is asked for again. Pure;
`step` decides when.

What follows an attempt is `lifecycle.decide`'s to say, from the same tally as at a terminal, made
here of `status.attempts`: attempts that infrastructure ended are free, as are the outcomes of
`lifecycle.FREE`, and a stop by a person counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from perdure.kubernetes.outcomes import End, Held
from perdure.kubernetes.result import AttemptResult
from perdure.kubernetes.snapshot import JobSeen, PodSeen
from perdure.kubernetes.spec import Spec
from perdure.kubernetes.status import (
    MOST_RECORDS,
    AttemptStatus,
    Lying,
    ReceiptSummary,
    Spent,
    StatusCondition,
    TaskRunStatus,
    WorkOfRecord,
    moment,
    said,
    stamp,
)
from perdure.kubernetes.wanted import WantedRun
from perdure.model import (
    Attempt,
    Continuation,
    ContinuityPolicy,
    Evidence,
    Outcome,
    OutcomeKind,
    Receipt,
    RunState,
    Start,
    Usage,
)
from perdure.model import Verdict as Judged
from perdure.rules.crashes import loop
from perdure.rules.lifecycle import FREE, UNCOUNTED, Tally, decide
from perdure.rules.pricing import cost, price_of

PHASES = {
    RunState.QUEUED: "Queued",
    RunState.SUCCEEDED: "Succeeded",
    RunState.FAILED: "Failed",
    RunState.CANCELLED: "Cancelled",
}


def begun(status: TaskRunStatus, number: int, run: WantedRun, now: int) -> TaskRunStatus:
    """With one more attempt at work. The number is in the status before anything of the attempt
    exists."""
    record = AttemptStatus(
        number=number,
        job=run.job(number),
        context_version=status.context_version,
        started=stamp(now),
    )
    status = replace(
        status,
        phase="Running",
        attempt=number,
        run_after="",
        reason="",
        attempts=(*status.attempts, record),
    )
    return _trimmed(_without(status, "NeedsPerson", "Waiting", now=now))


def closed(
    status: TaskRunStatus, end: End, run: WantedRun, now: int, jitter: float
) -> TaskRunStatus:
    """With the open attempt's one outcome, and what follows it."""
    record, result = status.attempts[-1], end.result
    asked = run.spec.suspend or run.deleting
    record = replace(
        _placed(record, None, end.pod),
        ended=stamp(now),
        outcome=str(end.outcome.kind),
        detail=said(end.outcome.detail),
        infrastructure=end.infrastructure,
        exit_code=end.outcome.code
        if end.pod is None or end.pod.ended is None
        else end.pod.ended.code,
    )
    if result is not None:
        record = replace(
            record,
            session_id=_id(result.session_id),
            receipt=_verdict(result),
            work=_work(result),
            usage=_spent(result.usage),
        )
    status = _filled_in(replace(status, attempts=(*status.attempts[:-1], record)), result)
    status = _learnt(status, record, result, run)
    status = _without(status, "Waiting", now=now)
    decision = decide(
        end.outcome, tally(status, run.spec), _policy(run.spec, end.outcome.kind), now, jitter
    )
    phase, after, reason = PHASES[decision.state], decision.run_after, decision.reason
    newer = max(status.context_version, run.spec.context_version) > record.context_version
    if (
        newer
        and decision.state is not RunState.QUEUED
        and end.outcome.kind is not OutcomeKind.CANCELLED
    ):
        phase, after, reason = "Queued", now, "new instructions came while it ran"
    elif decision.condition is not None:
        status = told(
            status,
            "NeedsPerson",
            camel(end.outcome.kind),
            f"{decision.reason}. {decision.condition.message}",
            now,
        )
    if newer:
        status = allowed_anew(status, run.spec)
    if asked and phase in ("Queued", "Cancelled"):
        phase, after, reason = "Suspended", 0, "stopped on request"
    return settled(
        replace(
            status,
            phase=phase,
            run_after=stamp(after) if phase == "Queued" else "",
            reason=said(reason),
        ),
        now,
    )


def settled(status: TaskRunStatus, now: int) -> TaskRunStatus:
    """With the condition Complete as the phase has it, for `kubectl wait`."""
    last = status.attempts[-1].outcome if status.attempts else ""
    if status.phase == "Succeeded":
        reason = "Succeeded"
    elif status.phase in ("Failed", "Cancelled") and last:
        reason = camel(last)
    else:
        reason = status.phase
    done = status.phase == "Succeeded"
    return told(status, "Complete", reason or "Pending", status.reason, now, holds=done)


def reopened(status: TaskRunStatus, reason: str, now: int) -> TaskRunStatus:
    """Queued again, due now, with at least one more attempt allowed."""
    status = _without(status, "NeedsPerson", "Waiting", now=now)
    return settled(
        replace(allowed_more(status), phase="Queued", run_after=stamp(now), reason=reason), now
    )


def allowed_more(status: TaskRunStatus) -> TaskRunStatus:
    """With at least one attempt to come; the one at work may use up what it has."""
    return replace(
        status,
        attempts_allowed=max(
            status.attempts_allowed, _used_up(status) + (status.open is not None) + 1
        ),
    )


def allowed_anew(status: TaskRunStatus, spec: Spec) -> TaskRunStatus:
    """With all the attempts of new instructions to come. Where one is at work, its end says so
    again: it is of those before."""
    return replace(status, attempts_allowed=_used_up(status) + spec.policy.attempts)


def refused(status: TaskRunStatus, reason: str, message: str, now: int) -> TaskRunStatus:
    """Failed before an attempt could begin; a person is needed."""
    status = told(_without(status, "Waiting", now=now), "NeedsPerson", reason, message, now)
    return settled(replace(status, phase="Failed", run_after="", reason=said(message)), now)


def waits(status: TaskRunStatus, held: Held, now: int) -> TaskRunStatus:
    """With the condition Waiting. Its time is when the wait began, whatever it waited for first."""
    return told(status, "Waiting", held.reason, held.message, now)


def goes_on(status: TaskRunStatus, now: int) -> TaskRunStatus:
    """Without it."""
    return _without(status, "Waiting", now=now)


def beset(status: TaskRunStatus, sentence: str, now: int) -> TaskRunStatus:
    """With what is told of objects that only look like the TaskRun's; without it where the sentence
    is empty."""
    return (
        told(status, "Foreign", "NotOwned", sentence, now)
        if sentence
        else _without(status, "Foreign", now=now)
    )


def placed(status: TaskRunStatus, job: JobSeen | None, pod: PodSeen | None) -> TaskRunStatus:
    """With what is seen of the open attempt."""
    if pod is not None and pod.claim:
        status = replace(status, workspace=replace(status.workspace, claim_name=pod.claim))
    return replace(status, attempts=(*status.attempts[:-1], _placed(status.attempts[-1], job, pod)))


def told(
    status: TaskRunStatus, type: str, reason: str, message: str, now: int, *, holds: bool = True
) -> TaskRunStatus:
    """With a condition. The time of its transition changes with its truth, and with nothing
    else."""
    was = next((each for each in status.conditions if each.type == type), None)
    word = "True" if holds else "False"
    since = (
        was.last_transition_time
        if was is not None and was.status == word and was.last_transition_time
        else stamp(now)
    )
    condition = StatusCondition(
        type=type, status=word, reason=reason, message=said(message), last_transition_time=since
    )
    return replace(
        status, conditions=(*(each for each in status.conditions if each.type != type), condition)
    )


def tally(status: TaskRunStatus, spec: Spec) -> Tally:
    """What the attempts of a status add up to, the newest one ended."""
    counted = [
        record
        for record in status.attempts
        if record.outcome and record.outcome != OutcomeKind.CANCELLED
    ]
    free = 0
    for record in reversed(counted):
        if not (record.infrastructure or record.outcome in FREE):
            break
        free += 1
    last = status.attempts[-1]
    rounds = sum(
        record.outcome == OutcomeKind.VERIFY_FAILED
        and record.context_version == last.context_version
        for record in counted
    )
    spent = (
        status.usage.cost_usd
        if status.usage.cost_usd
        else _reckoned(status.usage.usage, spec.model)
    )
    return Tally(
        counted=_used_up(status),
        free=free,
        unbegun=last.infrastructure,
        allowed=status.attempts_allowed or spec.policy.attempts,
        spent_usd=spent,
        budget_usd=spec.policy.budget_usd,
        rounds=rounds,
        rounds_allowed=spec.policy.verify_rounds,
        loop=loop([_attempt(record) for record in counted]),
    )


def patch(was: dict[str, Any], status: TaskRunStatus) -> dict[str, Any]:
    """The merge patch that makes the stored status this one; empty where it is."""
    now: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(status))
    changed = {name: value for name, value in now.items() if was.get(name) != value}
    if (
        "workspace" in changed or "usage" in changed
    ):  # objects are merged: what is gone has to be named
        for name in ("workspace", "usage"):
            if name in changed and isinstance(was.get(name), dict):
                changed[name] = {
                    **dict.fromkeys(set(was[name]) - set(changed[name])),
                    **changed[name],
                }
    return changed | {name: None for name in was if name not in now}


def camel(words: str) -> str:
    """`auth_failed` as Kubernetes writes reasons."""
    return "".join(part.capitalize() for part in words.split("_"))


def _used_up(status: TaskRunStatus) -> int:
    """How many of the attempts allowed are gone."""
    return status.used_before + sum(map(_used, status.attempts))


def _used(record: AttemptStatus) -> bool:
    """Whether it used up one of the attempts that are allowed."""
    free = (
        record.infrastructure
        or record.outcome in UNCOUNTED
        or record.outcome == OutcomeKind.CANCELLED
    )
    return bool(record.outcome) and not free


def _trimmed(status: TaskRunStatus) -> TaskRunStatus:
    """The newest records; what those that go had used up is kept as a number."""
    over = status.attempts[:-MOST_RECORDS]
    return replace(
        status,
        attempts=status.attempts[len(over) :],
        used_before=status.used_before + sum(map(_used, over)),
    )


def _placed(record: AttemptStatus, job: JobSeen | None, pod: PodSeen | None) -> AttemptStatus:
    if job is not None:
        record = replace(record, job=job.name, job_uid=job.uid)
    return record if pod is None else replace(record, pod=pod.name, node=pod.node or record.node)


def _learnt(
    status: TaskRunStatus, record: AttemptStatus, result: AttemptResult | None, run: WantedRun
) -> TaskRunStatus:
    """What the attempt tells of the run as a whole."""
    volume = run.spec.workspace
    # Of an attempt that tells nothing it is not known that it did nothing: its Job may have come
    # and gone unseen.
    lying = replace(status.workspace, saved=False, checkpoints=volume.checkpoints)
    if result is not None:
        place = result.workspace
        lying = Lying(
            claim_name=lying.claim_name,
            path=said(place.path, 1000) or lying.path,
            branch=said(place.branch, 250) or lying.branch,
            commit=said(place.commit, 64) or lying.commit,
            checkpoints=volume.checkpoints,
            saved=result.saved,
        )
        total = status.usage.usage + result.usage
        status = replace(
            status, usage=_spent(total), session_id=_id(result.session_id) or status.session_id
        )
    verdict = record.receipt.verdict if record.receipt is not None else ""
    # Of an attempt whose pod told nothing, nothing is known of the work.
    work = record.work.verdict if record.work is not None else ""
    return replace(status, workspace=lying, receipt=verdict or status.receipt, work=work)


def _filled_in(status: TaskRunStatus, result: AttemptResult | None) -> TaskRunStatus:
    """Receipts of attempts that could not tell them themselves; their outcomes stay as they were
    told."""
    before = {each.number: each for each in result.earlier} if result is not None else {}

    def fill(record: AttemptStatus) -> AttemptStatus:
        known = before.get(record.number)
        if known is None or not record.outcome:
            return record
        if known.verdict is not None and record.receipt is None:
            record = replace(record, receipt=ReceiptSummary(verdict=str(known.verdict)))
        return replace(record, session_id=record.session_id or _id(known.session_id))

    return replace(status, attempts=tuple(map(fill, status.attempts)))


def _policy(spec: Spec, kind: OutcomeKind) -> ContinuityPolicy:
    """As `engine.attempt.finish` has it: of a conversation that is too long, strict forbids a new
    one, not a shorter one."""
    if kind is not OutcomeKind.CONTEXT_EXHAUSTED:
        return spec.policy.continuity
    when, strict = spec.policy.when_full, spec.policy.continuity is ContinuityPolicy.STRICT
    return (
        ContinuityPolicy.STRICT
        if when == "stop" or (strict and when == "roll-over")
        else ContinuityPolicy.DISCLOSE
    )


def _attempt(record: AttemptStatus) -> Attempt:
    """A record as `crashes` looks at it. Where nothing was told of an attempt, it is not held to
    have been in vain."""
    told = record.receipt is not None or record.usage is not None
    receipt = Receipt(
        verdict=Judged.NATIVE,
        evidence=Evidence(answered=not told, prompt_found=record.receipt is not None),
    )
    return Attempt(
        run="",
        number=record.number,
        context_version=record.context_version,
        worker="",
        started=moment(record.started),
        ended=moment(record.ended),
        continuation=None if record.infrastructure else Continuation(kind=Start.FRESH),
        outcome=Outcome(kind=_kind(record.outcome), detail=record.detail),
        usage=record.usage.usage if record.usage else Usage(),
        receipt=receipt,
    )


def _kind(word: str) -> OutcomeKind:
    """A status can be written by others: an unknown word is a failure."""
    return OutcomeKind(word) if word in set(OutcomeKind) else OutcomeKind.FAILED


def _without(status: TaskRunStatus, *types: str, now: int) -> TaskRunStatus:
    for each in types:
        if status.condition(each) is not None:
            status = told(status, each, "Resolved", "", now, holds=False)
    return status


def _verdict(result: AttemptResult) -> ReceiptSummary | None:
    receipt = result.receipt
    if receipt is None:
        return None
    reasons: Sequence[str] = receipt.reasons
    return ReceiptSummary(
        verdict=str(receipt.verdict),
        rung=str(receipt.rung),
        reasons=tuple(said(each, 1000) for each in reasons[:16]),
    )


def _work(result: AttemptResult) -> WorkOfRecord | None:
    work = result.work
    if work is None:
        return None
    return WorkOfRecord(
        verdict=str(work.verdict),
        reason=said(work.reason, 1000),
        files=_bounded(work.files),
        commits=_bounded(work.commits),
        pushed=work.pushed,
        denied=_bounded(work.denied),
        question=said(work.question, 1000),
    )


def _bounded(number: int) -> int:
    """A count that the resource takes (int32); the pod's agent could have written it."""
    return min(max(number, 0), 2**31 - 1)


def _spent(usage: Usage) -> Spent:
    return Spent(input_tokens=usage.input, output_tokens=usage.output, cost_usd=usage.cost_usd)


def _id(text: str) -> str:
    return said(text, 200)


def _reckoned(usage: Usage, model: str) -> float:
    price = price_of(model)
    return cost(usage, price) if price is not None else 0.0
