"""Builds the Events that `kubectl describe` shows for a TaskRun. Pure. `reconciler` posts an Event
after it has written the status change that the Event reports.

If the operator is killed between these two writes, the Event is never posted. No fact is lost,
because the status has all of them. An Event's name is derived from its content, so no Event is
posted twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from perdure.kubernetes.objects import Manifest
from perdure.kubernetes.outcomes import UNTIMED
from perdure.kubernetes.status import FINAL, AttemptStatus, TaskRunStatus, safe_line, stamp
from perdure.kubernetes.wanted import GROUP, KIND, VERSION, WantedRun
from perdure.model import OutcomeKind

REPORTER = "perdure-operator"
LONGEST = 1000
"""Maximum number of characters of an Event's message. The API server accepts 1,024."""
PROBLEMS = ("NeedsPerson", "UnsavedWork", "Foreign")


class EventDraft(msgspec.Struct, frozen=True, kw_only=True):
    """An Event before it is posted. `key` distinguishes it from all other Events of the TaskRun."""

    reason: str
    message: str
    key: str
    warning: bool = False


def events_between(was: TaskRunStatus, now: TaskRunStatus) -> list[EventDraft]:
    """Return the Events for the changes between two statuses of a TaskRun."""
    return [*_attempts(was, now), *_conditions(was, now), *_phases(was, now)]


def _attempts(was: TaskRunStatus, now: TaskRunStatus) -> Iterator[EventDraft]:
    if now.context_version > was.context_version > 0:
        version = now.context_version
        yield EventDraft(
            reason="InstructionsRecorded",
            message=f"version {version} of the instructions is recorded",
            key=f"version-{version}",
        )
    before = {each.number: each for each in was.attempts}
    for each in now.attempts:
        known = before.get(each.number)
        if known is None:
            yield EventDraft(
                reason="AttemptBegun",
                message=f"attempt {each.number} begins as Job {each.job}",
                key=f"begun-{each.number}",
            )
        if each.outcome and (known is None or not known.outcome):
            yield _end(each)


def _end(attempt: AttemptStatus) -> EventDraft:
    if attempt.receipt is not None:
        proof = f"; receipt {attempt.receipt.verdict}"
    else:
        proof = ""
    if attempt.work is not None:
        work = f"; work {attempt.work.verdict}"
    else:
        work = ""
    why = f" ({safe_line(attempt.detail, 600)})" if attempt.detail else ""
    well = attempt.outcome in (OutcomeKind.SUCCEEDED, OutcomeKind.CANCELLED)
    return EventDraft(
        reason="AttemptEnded",
        message=f"attempt {attempt.number}: {attempt.outcome}{why}{proof}{work}",
        key=f"ended-{attempt.number}",
        warning=not well,
    )


def _conditions(was: TaskRunStatus, now: TaskRunStatus) -> Iterator[EventDraft]:
    waits, waited = now.condition("Waiting"), was.condition("Waiting")
    if waits is not None and (waited is None or waited.reason != waits.reason):
        yield EventDraft(
            reason=waits.reason,
            message=waits.message,
            key=f"waiting-{now.attempt}-{waits.reason}-{waits.last_transition_time}",
            warning=waits.reason not in UNTIMED,
        )
    for kind in PROBLEMS:
        found, before = now.condition(kind), was.condition(kind)
        if found is not None and (before is None or before.reason != found.reason):
            yield EventDraft(
                reason=kind,
                message=found.message,
                key=f"{kind}-{found.reason}-{found.last_transition_time}",
                warning=True,
            )


def _phases(was: TaskRunStatus, now: TaskRunStatus) -> Iterator[EventDraft]:
    if now.phase == was.phase:
        return
    last = now.attempts[-1] if now.attempts else None
    if now.phase == "Running" and last is not None:
        yield EventDraft(
            reason="AttemptRunning",
            message=f"attempt {last.number} runs in pod {last.pod} on node {last.node}",
            key=f"running-{last.number}",
        )
    elif now.phase in FINAL or now.phase == "Suspended":
        reason = f": {now.reason}" if now.reason else ""
        yield EventDraft(
            reason=now.phase,
            message=f"it has ended after attempt {now.attempt}{reason}"
            if now.phase in FINAL
            else f"it is stopped after attempt {now.attempt}{reason}",
            key=f"{now.phase}-{now.attempt}-{now.context_version}-{now.completion_time}",
            warning=now.phase == "Failed",
        )


def event(run: WantedRun, found: EventDraft, now: int) -> Manifest:
    """Return a draft as an Event object that the API server accepts."""
    digest = hashlib.sha256(f"{run.uid}/{found.key}".encode()).hexdigest()[:16]
    at = f"{stamp(now)[:19]}Z"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{run.name}.{digest}", "namespace": run.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": run.name,
            "namespace": run.namespace,
            "uid": run.uid,
        },
        "type": "Warning" if found.warning else "Normal",
        "reason": found.reason,
        "message": safe_line(found.message, LONGEST),
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "source": {"component": REPORTER},
        "reportingComponent": REPORTER,
        "reportingInstance": REPORTER,
    }
