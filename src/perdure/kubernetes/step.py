"""The next step for one TaskRun, from what is seen of it, its Jobs and its pods: level-based, and
pure.

A step is one thing to do; after it everything is looked at again. So it does not matter which
events came, in which order, how often, or whether the operator died in between. What is seen may be
old: a write to the status says which version it follows and is refused otherwise, attempt numbers
only grow, a Job's name holds its attempt's number, and nothing is concluded from what is *not* seen
before a fresh look.

One attempt, as steps: Hold (the finalizer) -> Record (the instructions) -> Tell (attempt N is in
the status) -> Launch (its Job) -> Tell (its Job's uid) -> Tell (its outcome, and what follows).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import field

from msgspec.structs import replace

from perdure.kubernetes import deletion, outcomes, ownership, status_moves
from perdure.kubernetes.outcomes import End, Held
from perdure.kubernetes.snapshot import JobSeen, PodSeen
from perdure.kubernetes.status import (
    FINAL,
    MOST_RECORDS,
    AttemptStatus,
    TaskRunStatus,
    moment,
    said,
    stamp,
)
from perdure.kubernetes.wanted import WantedRun
from perdure.lateclass import dataclass
from perdure.model import Outcome, OutcomeKind

PATIENCE_MS = 1_800_000
"""So long an attempt waits for what keeps it from beginning; then it needs a person."""
LOOK_AGAIN_MS = 15_000
MOST_LOOK_AGAIN_MS = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a TaskRun at a moment."""

    run: WantedRun
    jobs: Sequence[JobSeen] = ()
    pods: Sequence[PodSeen] = ()
    """Those too that are gone, as they were seen last."""
    foreign: Sequence[PodSeen] = ()
    """Of them (`next_step` tells them apart) those that bear the TaskRun's labels and are of none
    of its Jobs."""
    fresh: bool = False
    """Jobs and pods were read just now, not remembered."""
    recorded: frozenset[int] | None = None
    """The versions of the instructions that are kept; None: not known."""
    trouble: Held | None = None
    """Why the newest thing that was tried could not be done."""
    notes: dict[str, str] = field(default_factory=dict)
    """What events say, by the uid of the object that they are about."""
    patience_ms: int = PATIENCE_MS


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing is to be done before something happens, or `until` (ms)."""

    until: int | None = None


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Jobs and pods are to be read anew."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Events about an object are to be read."""

    uid: str


@dataclass(frozen=True, slots=True)
class RecordContext:
    """The text of the newest instructions is to be kept, unless it is."""


@dataclass(frozen=True, slots=True)
class Tell:
    """The status is to become this."""

    status: TaskRunStatus


@dataclass(frozen=True, slots=True)
class HoldFinalizer:
    """The finalizer is to be set."""


@dataclass(frozen=True, slots=True)
class Release:
    """The finalizer is to go; before it the claim, where it is named."""

    claim: str = ""


@dataclass(frozen=True, slots=True)
class LaunchPod:
    """The Job of the open attempt is to be made, and before it what its pod needs."""

    record: AttemptStatus


@dataclass(frozen=True, slots=True)
class StopPod:
    """A Job is to be deleted, and with it its pod: in good order, within its grace period."""

    job: JobSeen


Step = Rest | LookAgain | Ask | RecordContext | Tell | HoldFinalizer | Release | LaunchPod | StopPod


def next_step(seen: Seen, now: int, jitter: float = 0.5) -> Step:
    """The one thing to do next. `now` in ms; `jitter` in [0, 1) spreads delays."""
    run, status = seen.run, seen.run.status
    if run.deleting and not run.held:
        return Rest()
    if run.deleting and run.abandoned:
        return next((StopPod(job) for job in seen.jobs if _runs(job)), None) or Release(
            deletion.claim_to_go(run)
        )
    own, foreign = ownership.apart(seen.pods, seen.jobs, status)
    seen = dataclasses.replace(seen, pods=own, foreign=foreign)
    told = status.condition("Foreign")
    if (sentence := ownership.told_of(foreign)) != (told.message if told is not None else ""):
        return (
            Tell(status_moves.beset(status, sentence, now))
            if seen.fresh or not sentence
            else LookAgain()
        )
    if any(job.attempt > status.attempt for job in seen.jobs) and not seen.fresh:
        return LookAgain()
    for job in seen.jobs:
        if (
            _runs(job)
            and (status.open is None or job.attempt != status.open.number)
            and not _is_over(seen, job.attempt)
        ):
            return StopPod(job)
    anew = run.generation != status.observed_generation or (
        run.retry and run.retry != status.retried
    )
    newer = run.spec.context_version > status.context_version
    if newer and not run.invalid and not run.deleting and (anew or status.phase not in FINAL):
        if run.spec.secret is not None or (
            seen.recorded is not None and run.spec.context_version in seen.recorded
        ):
            return Tell(_seen(run, _updated(status, run, now)))
        if seen.trouble is None:
            return RecordContext()
        if status.open is None:
            return _unable(seen, status, seen.trouble, now)
    if status.open is not None:
        if run.retry and run.retry != status.retried:  # it is at work: it may fail once more
            status = replace(status_moves.allowed_more(status), retried=run.retry)
        return _at_work(seen, status, status.attempts[-1], now, jitter)
    if run.deleting:
        return _leaves(seen, status, now)
    return _between(seen, status, now)


def _runs(job: JobSeen) -> bool:
    return not job.deleting and not job.finished


def _is_over(seen: Seen, attempt: int) -> bool:
    """Whether a pod of an attempt has ended: then its Job will, and its logs are kept as long as it
    is."""
    told = any(
        record.number == attempt and record.exit_code is not None
        for record in seen.run.status.attempts
    )
    return told or any(pod.attempt == attempt and pod.terminal for pod in seen.pods)


def _updated(status: TaskRunStatus, run: WantedRun, now: int) -> TaskRunStatus:
    """The newest instructions are kept. What had ended goes on with them; what is at work is given
    them afterwards."""
    first = not status.context_version
    status = replace(status, context_version=run.spec.context_version, contexts=status.contexts + 1)
    if run.spec.secret is not None:
        status = replace(
            status, instructions_from=(*status.instructions_from, run.spec.secret)[-MOST_RECORDS:]
        )
    status = status_moves.allowed_anew(status, run.spec)
    if first and status.phase not in FINAL:
        return status_moves.settled(
            replace(status_moves.goes_on(status, now), phase="Pending"), now
        )
    if status.phase in FINAL:
        return status_moves.reopened(status, "new instructions", now)
    return status


def _seen(run: WantedRun, status: TaskRunStatus) -> TaskRunStatus:
    return replace(status, observed_generation=run.generation)


def _unable(seen: Seen, status: TaskRunStatus, trouble: Held, now: int) -> Step:
    """What is needed before an attempt could be had: it is waited for, and not for ever."""
    run = seen.run
    phase = "Pending" if status.phase in FINAL else status.phase or "Pending"
    waits = status_moves.waits(
        replace(status, phase=phase, reason=said(trouble.message), retried=run.retry), trouble, now
    )
    since = _since(waits, now)
    if now - since > seen.patience_ms:
        return Tell(_seen(run, status_moves.refused(waits, trouble.reason, trouble.message, now)))
    return _told(run, status_moves.settled(waits, now), _again(since, now))


def _since(status: TaskRunStatus, now: int) -> int:
    waiting = status.condition("Waiting")
    return moment(waiting.last_transition_time) if waiting is not None else now


def _again(since: int, now: int) -> int:
    """When to try once more: seldomer, the longer it has lasted."""
    return now + min(max(LOOK_AGAIN_MS, (now - since) // 2), MOST_LOOK_AGAIN_MS)


def _told(run: WantedRun, status: TaskRunStatus, until: int | None) -> Step:
    """The status is written where it changed, else there is rest."""
    status = _seen(run, status)
    return Tell(status) if status_moves.patch(run.raw_status, status) else Rest(until)


def _at_work(
    seen: Seen, status: TaskRunStatus, record: AttemptStatus, now: int, jitter: float
) -> Step:
    """An attempt is open: it is launched, watched, stopped, closed."""
    run = seen.run
    asked = run.spec.suspend or run.deleting
    job = next((each for each in seen.jobs if each.attempt == record.number), None)
    pods = [pod for pod in seen.pods if pod.attempt == record.number]
    launched = bool(record.job_uid) or job is not None or bool(pods)
    if launched or asked:
        end = outcomes.ended(
            record.number, job, pods, mode=run.spec.workspace.mode, asked=asked, now=now
        )
        if end is not None:
            if end.absent and not seen.fresh:
                return LookAgain()
            return Tell(
                _seen(
                    run,
                    status_moves.closed(
                        status_moves.placed(status, job, end.pod), end, run, now, jitter
                    ),
                )
            )
    if asked and job is not None and _runs(job):
        if (
            record.job_uid != job.uid
        ):  # afterwards nothing else would say whose pod it is that ends its work
            return Tell(_seen(run, status_moves.placed(status, job, None)))
        return StopPod(job)
    if not launched:
        if strangers := [pod for pod in seen.foreign if pod.attempt == record.number and pod.live]:
            return _stuck(seen, status, Held("NotOwned", ownership.told_of(strangers)), now, jitter)
        if seen.trouble is not None:
            return _stuck(seen, status, seen.trouble, now, jitter)
        return LaunchPod(record)
    return _watched(seen, status, job, pods, now, jitter)


def _watched(
    seen: Seen,
    status: TaskRunStatus,
    job: JobSeen | None,
    pods: list[PodSeen],
    now: int,
    jitter: float,
) -> Step:
    """Nothing has ended: what is seen is told, and what keeps it from beginning."""
    live = [pod for pod in pods if pod.live]
    status = status_moves.placed(status, job, live[-1] if live else None)
    uid = outcomes.unexplained(job, pods, now)
    if uid and uid not in seen.notes:
        return Ask(uid)
    held = outcomes.held(job, pods, seen.notes.get(uid, ""), now)
    if held is not None:
        return _stuck(seen, status, held, now, jitter)
    began = any(pod.started for pod in live)
    queued = job is not None and job.suspended and not live
    status = status_moves.goes_on(status, now) if began or queued else status
    phase, reason = (
        ("Queued", "its Job is suspended, as by a queue that has no room for it yet")
        if queued
        else ("Running", "")
    )
    if status.phase != phase:
        status = status_moves.settled(replace(status, phase=phase, reason=reason), now)
    leaving = [pod.deleted + outcomes.OVERDUE_MS + 1000 for pod in live if pod.deleted]
    later = None if began or queued else now + LOOK_AGAIN_MS
    return _told(seen.run, status, min(leaving) if leaving else later)


def _stuck(seen: Seen, status: TaskRunStatus, held: Held, now: int, jitter: float) -> Step:
    """The open attempt cannot begin. After a while that is its outcome; a lost node alone is waited
    for as long as it takes, since what is on it may still write."""
    status = status_moves.waits(status, held, now)
    since = _since(status, now)
    if now - since > seen.patience_ms and held.reason != "NodeLost":
        outcome = Outcome(
            kind=OutcomeKind.CONFIG_ERROR, detail=f"it could not begin: {held.message}"
        )
        return Tell(
            _seen(
                seen.run, status_moves.closed(status, End(outcome=outcome), seen.run, now, jitter)
            )
        )
    return _told(seen.run, replace(status, reason=said(held.message)), _again(since, now))


def _between(seen: Seen, status: TaskRunStatus, now: int) -> Step:
    """No attempt is open."""
    run = seen.run
    if run.retry and run.retry != status.retried:
        status = replace(status, retried=run.retry)
        if status.phase in FINAL and status.context_version:
            return Tell(_seen(run, status_moves.reopened(status, "requested by you", now)))
        status = (
            replace(status_moves.allowed_more(status), run_after="")
            if status.context_version
            else replace(status, phase="Pending")
        )
    if status.phase in FINAL:
        if run.held and deletion.safe(run, status) and not deletion.claim_to_go(run):
            return Release()
        return _told(run, status, None)
    if run.invalid:
        return Tell(_seen(run, status_moves.refused(status, "InvalidSpec", run.invalid, now)))
    if run.spec.suspend:
        return _told(
            run,
            status_moves.settled(
                replace(status, phase="Suspended", run_after="", reason="stopped on request"), now
            ),
            None,
        )
    if status.phase == "Suspended":
        status = status_moves.settled(
            replace(status, phase="Queued", run_after=stamp(now), reason="goes on"), now
        )
    due = moment(status.run_after)
    if due > now:
        return _told(run, status, due)
    fenced = run.spec.workspace.mode != "Claim"
    left = [
        pod
        for pod in (*seen.pods, *seen.foreign)
        if pod.live and not (fenced and outcomes.overdue(pod, now))
    ]
    if left:
        message = f"the pod of attempt {left[0].attempt} is not gone yet"
        held = Held("PodLeaving", message)
        if outcomes.overdue(left[0], now):
            held = outcomes.held(None, left, "", now) or held
        if left[0] in seen.foreign:
            held = Held("NotOwned", ownership.told_of(left))
        return _told(run, status_moves.waits(status, held, now), now + LOOK_AGAIN_MS)
    if not run.held:
        return HoldFinalizer()
    number = max([status.attempt, *(job.attempt for job in seen.jobs)]) + 1
    return Tell(_seen(run, status_moves.settled(status_moves.begun(status, number, run, now), now)))


def _leaves(seen: Seen, status: TaskRunStatus, now: int) -> Step:
    """The TaskRun is to be deleted, and nothing of it is at work."""
    run = seen.run
    if deletion.safe(run, status):
        return Release(deletion.claim_to_go(run))
    return _told(
        run,
        status_moves.told(status, "UnsavedWork", "NotSaved", deletion.unsaved(run, status), now),
        None,
    )
