"""Decides the next step for one TaskRun from the known facts about it, its Jobs and its pods. Pure.
Called by `reconciler`.

A step is one action. After each step the facts are read again, and nothing depends on earlier
events (the design is level-based). It therefore does not matter which events arrived, in which
order and how often, or whether the operator was killed in between.

The facts may be out of date. This does no harm, for four reasons. A write to the status names the
version that it replaces, and is refused if there is a newer version. Attempt numbers only grow. A
Job's name contains the number of its attempt. A *missing* object counts only after the objects were
read from the API server again.

The steps of one attempt:

    RecordContext    store the instructions
    HoldFinalizer    only if the finalizer protects work
    CheckRoom
    WriteStatus      attempt N is open
    LaunchPod        create the attempt's Job
    WriteStatus      the Job's uid
    WriteStatus      the attempt's outcome, and what follows from it
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.kubernetes import outcomes, ownership, requests, status_moves
from perdure.kubernetes.admission import Room
from perdure.kubernetes.outcomes import UNTIMED, End, Obstacle
from perdure.kubernetes.snapshot import JobSeen, PodSeen, SessionAsked
from perdure.kubernetes.status import (
    FINAL,
    MOST_RECORDS,
    AttemptStatus,
    TaskRunStatus,
    moment,
    safe_line,
    stamp,
)
from perdure.kubernetes.wanted import WantedRun
from perdure.model import Outcome, OutcomeKind

PATIENCE_MS = 1_800_000
"""Maximum time in milliseconds that an attempt waits for an obstacle that only a person can remove.
"""
LOOK_AGAIN_MS = 15_000
MOST_LOOK_AGAIN_MS = 300_000
LOG_AGAIN_MS = 2_000
"""Delay in milliseconds before the second reading of a log that names no conversation yet. The
delay doubles each time, so an agent that never names a conversation causes few requests."""


EXPIRED = "kubectl perdure retry NAME continues, and the agent may ask again"
OLD_DEFINITION = (
    "The cluster's definition of TaskRuns has no field for requests: apply that of the operator's "
    "version, then kubectl perdure retry NAME"
)


class TaskRunFacts(Struct, frozen=True, kw_only=True):
    """The known facts about a TaskRun, its Jobs and its pods at one moment."""

    run: WantedRun
    jobs: Sequence[JobSeen] = ()
    pods: Sequence[PodSeen] = ()
    """Pods of the TaskRun, including deleted ones in their last known state."""
    foreign: Sequence[PodSeen] = ()
    """Pods that have the TaskRun's labels but belong to none of its Jobs. `next_step` separates
    them from `pods`."""
    fresh: bool = False
    """Whether Jobs and pods were just read from the API server. Otherwise they come from the
    operator's cache."""
    recorded: frozenset[int] | None = None
    """Versions of the instructions that are in the ConfigMap; None if unknown."""
    trouble: Obstacle | None = None
    """The obstacle that kept the previous step from being carried out; None if there was none."""
    leaving: bool | None = None
    """Whether the namespace is being deleted; None if unknown."""
    room: Room | None = None
    """The decision of `admission.room` about one more attempt; None if the decision has not been
    made yet."""
    notes: dict[str, str] = field(default_factory=dict)
    """Messages of warning Events, by the uid of the object that each Event is about."""
    sessions: dict[str, SessionAsked] | None = None
    """Results of the searches for a conversation in pods' logs, by the pod's uid. None if the
    operator does not read logs."""
    patience_ms: int = PATIENCE_MS
    forbidden: str = ""
    """Reason why the operator's settings forbid an attempt; empty if they allow it."""


class Wait(Struct, frozen=True):
    """Do nothing until the next event, or until the time `until` (milliseconds since 1970)."""

    until: int | None = None


class LookAgain(Struct, frozen=True):
    """Read the Jobs, the pods and the TaskRun from the API server again."""


class ReadEvents(Struct, frozen=True):
    """Read the Events about an object."""

    uid: str


class ReadSession(Struct, frozen=True):
    """Search a pod's log for the id of the attempt's conversation. If the log names none yet, it
    may be read again `wait` milliseconds after `now`."""

    pod: PodSeen
    now: int
    wait: int


class CheckRoom(Struct, frozen=True):
    """Ask `admission.room` whether there is room for one more attempt."""


class CheckNamespace(Struct, frozen=True):
    """Ask the API server whether the namespace is being deleted."""


class DeleteExpired(Struct, frozen=True):
    """Delete the TaskRun. Its time to live is over and its work is saved."""


class RecordContext(Struct, frozen=True):
    """Store the text of the newest instructions in the ConfigMap, if it is not there yet."""


class WriteStatus(Struct, frozen=True):
    """Write a status to the TaskRun."""

    status: TaskRunStatus


class HoldFinalizer(Struct, frozen=True):
    """Set the finalizer on the TaskRun."""


class Release(Struct, frozen=True):
    """Remove the finalizer, so that the TaskRun can be deleted. Before that, delete the claim that
    `claim` names. If `claim` is empty and the TaskRun keeps its claim, record that on the claim
    instead."""

    claim: str = ""
    """Name of the claim to delete; empty for none."""


class LaunchPod(Struct, frozen=True):
    """Create the objects that the open attempt's pod needs, and then the attempt's Job."""

    record: AttemptStatus


class StopPod(Struct, frozen=True):
    """Delete a Job and its pod. The pod gets its grace period to end normally."""

    job: JobSeen


Step = (
    Wait
    | LookAgain
    | ReadEvents
    | ReadSession
    | CheckRoom
    | CheckNamespace
    | DeleteExpired
    | RecordContext
    | WriteStatus
    | HoldFinalizer
    | Release
    | LaunchPod
    | StopPod
)


def next_step(facts: TaskRunFacts, now: int, jitter: float = 0.5) -> Step:
    """Return the next step. `now` is in milliseconds since 1970. `jitter` in [0, 1) varies delays,
    so that not all TaskRuns retry at the same time."""
    run, status = facts.run, facts.run.status
    if run.deleting and not run.has_finalizer:
        return Wait()
    if run.deleting and run.abandoned:
        return next((StopPod(job) for job in facts.jobs if _runs(job)), None) or Release(
            ownership.claim_to_go(run)
        )
    if run.has_finalizer and not run.deleting and ownership.kept(run):
        return Release()
    own, foreign = ownership.split_by_owner(facts.pods, facts.jobs, status)
    facts = replace(facts, pods=own, foreign=foreign)
    reported = status.condition("Foreign")
    if (sentence := ownership.foreign_message(foreign)) != (
        reported.message if reported is not None else ""
    ):
        if facts.fresh or not sentence:
            return WriteStatus(status_moves.with_foreign_pods(status, sentence, now))
        return LookAgain()
    if any(job.attempt > status.attempt for job in facts.jobs) and not facts.fresh:
        return LookAgain()
    for job in facts.jobs:
        if (
            _runs(job)
            and (status.open is None or job.attempt != status.open.number)
            and not _is_over(facts, job)
        ):
            return StopPod(job)
    changed = run.generation != status.observed_generation or (
        run.retry and run.retry != status.retried
    )
    newer = run.spec.context_version > status.context_version
    if newer and not run.invalid and not run.deleting and (changed or status.phase not in FINAL):
        if run.spec.secret is not None or (
            facts.recorded is not None and run.spec.context_version in facts.recorded
        ):
            return WriteStatus(_with_generation(run, _updated(status, run, now)))
        if facts.trouble is None:
            return RecordContext()
        if status.open is None:
            return _waiting_or_failed(facts, status, facts.trouble, now)
    if status.open is not None:
        # A retry was requested while an attempt is running. It allows further attempts after this
        # one.
        if run.retry and run.retry != status.retried:
            status = status_moves.allowed_more(status, run.retry_attempts)
            status = replace(status, retried=run.retry)
        return _with_open_attempt(facts, status, status.attempts[-1], now, jitter)
    if run.deleting:
        return _deleting(facts, status, now)
    return _between(facts, status, now)


def _runs(job: JobSeen) -> bool:
    return not job.deleting and not job.finished


def _is_over(facts: TaskRunFacts, job: JobSeen) -> bool:
    """Return whether a pod of the Job's attempt has ended. The Job then completes by itself. It
    must not be deleted, because the pod's logs would be deleted with it. Return False for a
    suspended Job, which would start a new pod as soon as it is resumed."""
    if job.suspended:
        return False
    for record in facts.run.status.attempts:
        if record.number == job.attempt and record.exit_code is not None:
            return True
    return any(pod.attempt == job.attempt and pod.terminal for pod in facts.pods)


def _updated(status: TaskRunStatus, run: WantedRun, now: int) -> TaskRunStatus:
    """Return the status after the newest instructions were recorded. A TaskRun that had ended, or
    that waited for a person's answer, is queued again. If an attempt is running, the next attempt
    gets the new instructions."""
    first = not status.context_version
    status = replace(status, context_version=run.spec.context_version, contexts=status.contexts + 1)
    if run.spec.secret is not None:
        status = replace(
            status, instructions_from=(*status.instructions_from, run.spec.secret)[-MOST_RECORDS:]
        )
    status = status_moves.reset_allowed(status, run.spec)
    if first and status.phase not in FINAL:
        return status_moves.settled(
            replace(status_moves.without_waiting(status, now), phase="Pending"), now
        )
    if status.phase in FINAL or status.asks:
        return status_moves.reopened(status, "new instructions", now)
    return replace(status, requests=())


def _with_generation(run: WantedRun, status: TaskRunStatus) -> TaskRunStatus:
    number = run.generation
    conditions = [replace(each, observed_generation=number) for each in status.conditions]
    return replace(status, observed_generation=number, conditions=tuple(conditions))


def _waiting_or_failed(
    facts: TaskRunFacts, status: TaskRunStatus, trouble: Obstacle, now: int
) -> Step:
    """Return the step for an obstacle that keeps an attempt from beginning. The TaskRun gets the
    condition Waiting, and the attempt is tried again later. After a limited time the TaskRun fails.
    """
    run = facts.run
    if status.phase in FINAL:
        phase = "Pending"
    else:
        phase = status.phase or "Pending"
    waits = status_moves.waits(
        replace(status, phase=phase, reason=safe_line(trouble.message), retried=run.retry),
        trouble,
        now,
    )
    since = _since(waits, now)
    if now - since > facts.patience_ms:
        return WriteStatus(
            _with_generation(run, status_moves.refused(waits, trouble.reason, trouble.message, now))
        )
    return _write_or_wait(run, status_moves.settled(waits, now), _again(since, now))


def _since(status: TaskRunStatus, now: int) -> int:
    waiting = status.condition("Waiting")
    if waiting is not None:
        return moment(waiting.last_transition_time)
    return now


def _again(since: int, now: int) -> int:
    """Return when to try again, in milliseconds since 1970. The delay grows with the time that has
    passed since `since`, up to a maximum."""
    return now + min(max(LOOK_AGAIN_MS, (now - since) // 2), MOST_LOOK_AGAIN_MS)


def _write_or_wait(run: WantedRun, status: TaskRunStatus, until: int | None) -> Step:
    """Return the step that writes the status; `Wait` if the status has not changed."""
    status = _with_generation(run, status)
    if status_moves.patch(run.raw_status, status):
        return WriteStatus(status)
    return Wait(until)


def _with_open_attempt(
    facts: TaskRunFacts, status: TaskRunStatus, record: AttemptStatus, now: int, jitter: float
) -> Step:
    """Return the next step for the open attempt: launch, watch, stop or close it."""
    run = facts.run
    asked = run.spec.suspend or run.deleting
    job = next((each for each in facts.jobs if each.attempt == record.number), None)
    pods = [pod for pod in facts.pods if pod.attempt == record.number]
    launched = bool(record.job_uid) or job is not None or bool(pods)
    if launched or asked:
        end = outcomes.ended(
            record.number, job, pods, mode=run.spec.workspace.mode, asked=asked, now=now
        )
        if end is not None:
            if end.absent and not facts.fresh:
                return LookAgain()
            return WriteStatus(
                _with_generation(
                    run,
                    status_moves.closed(
                        status_moves.placed(status, job, end.pod), end, run, now, jitter
                    ),
                )
            )
    if asked and job is not None and _runs(job):
        # Record the Job's uid first. After the Job is deleted, the pod can only be identified by
        # this uid.
        if record.job_uid != job.uid:
            return WriteStatus(_with_generation(run, status_moves.placed(status, job, None)))
        return StopPod(job)
    if not launched:
        if strangers := [pod for pod in facts.foreign if pod.attempt == record.number and pod.live]:
            return _stuck(
                facts,
                status,
                Obstacle("NotOwned", ownership.foreign_message(strangers)),
                now,
                jitter,
            )
        if facts.trouble is not None:
            return _stuck(facts, status, facts.trouble, now, jitter)
        return LaunchPod(record)
    return _watched(facts, status, job, pods, now, jitter)


def _watched(
    facts: TaskRunFacts,
    status: TaskRunStatus,
    job: JobSeen | None,
    pods: list[PodSeen],
    now: int,
    jitter: float,
) -> Step:
    """Return the step for an attempt that was launched and has not ended: write its observed state
    to the status, including an obstacle that keeps it from starting."""
    live = [pod for pod in pods if pod.live]
    status = status_moves.placed(status, job, live[-1] if live else None)
    uid = outcomes.unexplained(job, pods, now)
    if uid and uid not in facts.notes:
        return ReadEvents(uid)
    obstacle = outcomes.obstacle_of(job, pods, facts.notes.get(uid, ""), now)
    if obstacle is not None:
        return _stuck(facts, status, obstacle, now, jitter)
    running = [pod for pod in live if pod.started]
    began, unnamed = bool(running), 0
    if running and facts.sessions is not None and not status.attempts[-1].session_id:
        pod = running[-1]
        asked = facts.sessions.get(pod.uid)
        if asked is None or (not asked.id and asked.again <= now):
            wait = LOG_AGAIN_MS if asked is None else min(2 * asked.wait, MOST_LOOK_AGAIN_MS)
            return ReadSession(pod, now, wait)
        status = status_moves.with_session(status, asked.id)
        unnamed = 0 if asked.id else asked.again
    queued = job is not None and job.suspended and not live
    if began or queued:
        status = status_moves.without_waiting(status, now)
    phase, reason = "Queued", status_moves.PLACING
    if queued:
        reason = "its Job is suspended, for example by a queue without room for it"
    elif began:
        phase, reason = "Running", ""
    if (status.phase, status.reason) != (phase, reason):
        status = status_moves.settled(replace(status, phase=phase, reason=reason), now)
    times = [pod.deleted + outcomes.OVERDUE_MS + 1000 for pod in live if pod.deleted]
    if unnamed:
        times.append(unnamed)
    later = None if began or queued else now + LOOK_AGAIN_MS
    return _write_or_wait(facts.run, status, min(times) if times else later)


def _stuck(
    facts: TaskRunFacts, status: TaskRunStatus, obstacle: Obstacle, now: int, jitter: float
) -> Step:
    """Return the step for an obstacle of the open attempt. The attempt waits until the obstacle is
    gone. If only a person can remove it, the attempt fails after a limited time.

    The wait has no time limit in two cases: there is no room, or the node is lost. Processes on a
    lost node may still write to the volume.
    """
    status = status_moves.waits(status, obstacle, now)
    since = _since(status, now)
    timed = obstacle.reason not in UNTIMED and obstacle.reason != "NodeLost"
    if timed and now - since > facts.patience_ms:
        outcome = Outcome(
            kind=OutcomeKind.CONFIG_ERROR, detail=f"it could not start: {obstacle.message}"
        )
        return WriteStatus(
            _with_generation(
                facts.run, status_moves.closed(status, End(outcome=outcome), facts.run, now, jitter)
            )
        )
    phase = "Queued" if obstacle.reason in UNTIMED else "Pending"
    if obstacle.reason == "NodeLost":
        phase = status.phase
    status = status_moves.settled(
        replace(status, phase=phase, reason=safe_line(obstacle.message)), now
    )
    return _write_or_wait(facts.run, status, _again(since, now))


def _between(facts: TaskRunFacts, status: TaskRunStatus, now: int) -> Step:
    """Return the next step while no attempt is open."""
    run = facts.run
    if run.retry and run.retry != status.retried:
        status = replace(status, retried=run.retry)
        if status.phase in FINAL and status.context_version:
            again = status_moves.reopened(status, "requested by you", now, run.retry_attempts)
            return WriteStatus(_with_generation(run, again))
        if status.context_version:
            status = status_moves.without_requests(status, now)
            status = replace(status_moves.allowed_more(status, run.retry_attempts), run_after="")
        else:
            status = replace(status, phase="Pending")
    if status.phase in FINAL:
        if run.has_finalizer and ownership.safe(run, status) and not ownership.claim_to_go(run):
            return Release()
        if not run.has_finalizer and ownership.claim_to_go(run) and status.attempt:
            return HoldFinalizer()
        return _ended(facts, status, now)
    if run.invalid:
        return WriteStatus(
            _with_generation(run, status_moves.refused(status, "InvalidSpec", run.invalid, now))
        )
    if facts.forbidden:
        return WriteStatus(
            _with_generation(
                run, status_moves.refused(status, "NotPermitted", facts.forbidden, now)
            )
        )
    if run.spec.suspend:
        status = status_moves.without_requests(status, now)
        return _write_or_wait(
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
    if status.asks:
        return _asking(run, status, now)
    due = moment(status.run_after)
    person = status.condition("NeedsPerson")
    # In phase Pending with a time limit, the TaskRun waits for answers. If it has no requests all
    # the same, the API server dropped them, because the cluster's definition lacks the field.
    if due and status.phase == "Pending" and person is not None:
        message = f"{person.message}. {OLD_DEFINITION}"
        refused = status_moves.refused(status, person.reason, message, now)
        return WriteStatus(_with_generation(run, refused))
    if due > now:
        return _write_or_wait(run, status, due)
    fenced = run.spec.workspace.mode != "Claim"
    left = []
    for pod in (*facts.pods, *facts.foreign):
        if pod.live and not (fenced and outcomes.overdue(pod, now)):
            left.append(pod)
    if left:
        message = f"the pod of attempt {left[0].attempt} still exists"
        obstacle = Obstacle("PodLeaving", message)
        if outcomes.overdue(left[0], now):
            obstacle = outcomes.obstacle_of(None, left, "", now) or obstacle
        if left[0] in facts.foreign:
            obstacle = Obstacle("NotOwned", ownership.foreign_message(left))
        return _write_or_wait(run, status_moves.waits(status, obstacle, now), now + LOOK_AGAIN_MS)
    if not run.has_finalizer and not ownership.kept(run):
        return HoldFinalizer()
    if facts.room is None:
        return CheckRoom()
    if facts.room.obstacle is not None:
        obstacle = facts.room.obstacle
        status = replace(status, phase="Queued", reason=safe_line(obstacle.message))
        status = status_moves.settled(status_moves.waits(status, obstacle, now), now)
        return _write_or_wait(run, status, now + facts.room.again_ms)
    number = max([status.attempt, *(job.attempt for job in facts.jobs)]) + 1
    return WriteStatus(
        _with_generation(
            run, status_moves.settled(status_moves.begun(status, number, run, now), now)
        )
    )


def _asking(run: WantedRun, status: TaskRunStatus, now: int) -> Step:
    """Return the next step for a TaskRun whose agent waits for a person: record new answers, and
    queue the next attempt as soon as no request is open. If nobody answers in time, the TaskRun
    fails."""
    given = requests.with_answers(status.requests, run.answers, run.uid, now)
    status = replace(status, requests=given)
    if not status.asks:
        return WriteStatus(_with_generation(run, status_moves.answered(status, now)))
    until = requests.expiry(status.requests)
    if now >= until:
        message = f"nobody answered the agent in time ({status.reason}). {EXPIRED}"
        return WriteStatus(
            _with_generation(run, status_moves.refused(status, "NeedsInput", message, now))
        )
    return _write_or_wait(run, status, until)


def _ended(facts: TaskRunFacts, status: TaskRunStatus, now: int) -> Step:
    """Return the next step for a TaskRun in a final phase: wait for the end of its time to live,
    and then delete it if its work is saved."""
    run, ttl = facts.run, facts.run.spec.ttl_seconds_after_finished
    end = moment(status.completion_time)
    if ttl is None or not end:
        return _write_or_wait(run, status, None)
    due = end + ttl * 1000
    if due > now:
        return _write_or_wait(run, status, due)
    if ownership.safe(run, status):
        step = _write_or_wait(run, status, None)
        if isinstance(step, Wait):
            return DeleteExpired()
        return step
    message = f"its time to live is over, but {ownership.unsaved(run, status)}"
    return _write_or_wait(
        run, status_moves.with_condition(status, "UnsavedWork", "NotSaved", message, now), None
    )


def _deleting(facts: TaskRunFacts, status: TaskRunStatus, now: int) -> Step:
    """Return the next step for a TaskRun that is being deleted and has no open attempt: allow the
    deletion, or report unsaved work."""
    run = facts.run
    if ownership.safe(run, status):
        return Release(ownership.claim_to_go(run))
    if facts.leaving is None:
        return CheckNamespace()
    # The namespace's claims and pods are being deleted too, so the finalizer protects nothing.
    if facts.leaving:
        return Release()
    status = status_moves.with_condition(
        status, "UnsavedWork", "NotSaved", ownership.unsaved(run, status), now
    )
    return _write_or_wait(run, status, now + LOOK_AGAIN_MS)
