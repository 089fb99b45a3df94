"""Reads TaskRuns for `perdure --cluster`, and makes the reports that it prints with `--json`. Pure.

The objects come from the API server. Anyone who may write a status can write anything into it, so a
value of the wrong type is treated as missing. Texts are not trusted; they are cleaned where they
are printed.

The order of the fields of a report is their order in the JSON. New fields are added without a new
`schema_version`. Times are in milliseconds since 1970 (UTC), costs in US dollars.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from perdure.kubernetes.objects import UntrustedObject, dollars_or_zero, plain_word
from perdure.model import OutcomeKind, RunState


class TaskRunOfList(Struct, frozen=True, kw_only=True):
    """A TaskRun as a row of a list."""

    namespace: str
    name: str
    phase: str
    service: str
    task: str
    agent: str
    attempt: int
    receipt: str
    work: str
    session_id: str
    reason: str
    run_after: int
    created: int


class WorkspaceOfTaskRun(Struct, frozen=True, kw_only=True):
    """Where the work of a TaskRun is."""

    mode: str
    claim: str
    path: str
    branch: str
    commit: str
    checkpoints: str
    saved: bool


class UsageOfTaskRun(Struct, frozen=True, kw_only=True):
    """The tokens and dollars that a TaskRun or one of its attempts has used."""

    input: int
    output: int
    cost_usd: float


class ConditionOfTaskRun(Struct, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str
    message: str
    since: int


class WorkOfAttempt(Struct, frozen=True, kw_only=True):
    """The summary of an attempt's work report."""

    verdict: str
    reason: str
    files: int
    commits: int
    pushed: bool | None
    denied: int
    question: str


class AttemptOfTaskRun(Struct, frozen=True, kw_only=True):
    """An attempt of a TaskRun. `verdict`, `rung` and `reasons` are those of its receipt."""

    number: int
    context_version: int
    job: str
    pod: str
    node: str
    started: int
    ended: int
    outcome: str
    detail: str
    infrastructure: bool
    exit_code: int | None
    session_id: str
    work: WorkOfAttempt
    verdict: str
    rung: str
    reasons: list[str]
    usage: UsageOfTaskRun


class RequestOfTaskRun(Struct, frozen=True, kw_only=True):
    """A request of a TaskRun's agent to a person, and its answer."""

    number: int
    id: str
    attempt: int
    kind: str
    tool: str
    text: str
    size: int
    sha256: str
    expires: int
    answer: str
    words: str
    by: str
    answered: int


class TaskRunReport(Struct, frozen=True, kw_only=True):
    """A TaskRun with its attempts, as `show --json` prints it. It begins with the fields of
    `TaskRunOfList`."""

    schema_version: int
    namespace: str
    name: str
    phase: str
    service: str
    task: str
    agent: str
    attempt: int
    receipt: str
    work: str
    session_id: str
    reason: str
    run_after: int
    created: int
    uid: str
    suspend: bool
    policy: str
    context_version: int
    recorded_version: int
    attempts_allowed: int
    workspace: WorkspaceOfTaskRun
    usage: UsageOfTaskRun
    conditions: list[ConditionOfTaskRun]
    attempts: list[AttemptOfTaskRun]
    requests: list[RequestOfTaskRun]


class TaskRunWhyReport(Struct, frozen=True, kw_only=True):
    """The report that `why --json` prints. It has some of the fields of `TaskRunReport`."""

    schema_version: int
    namespace: str
    name: str
    phase: str
    reason: str
    run_after: int
    policy: str
    conditions: list[ConditionOfTaskRun]
    attempts: list[AttemptOfTaskRun]


SCHEMA_VERSION = 1
STATES = {
    "Pending": RunState.QUEUED,
    "Queued": RunState.QUEUED,
    "Running": RunState.RUNNING,
    "Succeeded": RunState.SUCCEEDED,
    "Failed": RunState.FAILED,
    "Cancelled": RunState.CANCELLED,
    "Suspended": RunState.CANCELLED,
}
"""State of a run, by the phase of its TaskRun."""
OVER = ("Succeeded", "Failed", "Cancelled", "Suspended")


def part(body: UntrustedObject, path: str) -> UntrustedObject:
    """Return the object at a path such as `spec.workspace`; empty if there is none."""
    found: object = body
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, dict):
        return found
    return {}


def word(body: UntrustedObject, path: str) -> str:
    """Return the text at a path; empty if there is none."""
    found = _value(body, path)
    if isinstance(found, str):
        return found
    return ""


def count(body: UntrustedObject, path: str) -> int:
    """Return the integer at a path; 0 if there is none."""
    found = _value(body, path)
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    return 0


def several(body: UntrustedObject, path: str) -> list[UntrustedObject]:
    """Return the objects in the list at a path; empty if there is none."""
    found = _value(body, path)
    if isinstance(found, list):
        return [each for each in found if isinstance(each, dict)]
    return []


def _value(body: UntrustedObject, path: str) -> object:
    """Return the value at a path; None if there is none."""
    above, _, name = path.rpartition(".")
    if above:
        body = part(body, above)
    return body.get(name)


def phase(body: UntrustedObject) -> str:
    """Return the TaskRun's phase; `Pending` if the operator has not processed the TaskRun yet."""
    return word(body, "status.phase") or "Pending"


def is_over(body: UntrustedObject) -> bool:
    """Return whether the TaskRun has ended, is suspended, or waits for a person's answer. Return
    False as long as the operator has not processed the current spec and its instructions."""
    seen = count(body, "status.observedGeneration") >= count(body, "metadata.generation")
    over = phase(body) in OVER or asks(body)
    return seen and not unrecorded(body) and over


def asks(body: UntrustedObject) -> bool:
    """Return whether a request of the agent is open."""
    return any(not word(each, "answer") for each in several(body, "status.requests"))


def unrecorded(body: UntrustedObject) -> bool:
    """Return True if the operator has not yet recorded the newest instructions. If the spec were
    updated again now, these instructions would be lost."""
    return count(body, "status.contextVersion") < count(body, "spec.contextVersion")


def has_open_attempt(body: UntrustedObject) -> bool:
    """Return whether an attempt is open: it has begun and has no outcome. Its pod may not have
    started yet."""
    attempts = several(body, "status.attempts")
    return bool(attempts) and not word(attempts[-1], "outcome")


def condition(body: UntrustedObject, kind: str) -> UntrustedObject:
    """Return the condition of this type if it is true; otherwise an empty object."""
    for each in several(body, "status.conditions"):
        if each.get("type") == kind and each.get("status") == "True":
            return each
    return {}


def last_outcome(body: UntrustedObject) -> OutcomeKind | None:
    """Return the kind of the newest attempt's outcome; None if there is none or its kind is
    unknown."""
    attempts = several(body, "status.attempts")
    try:
        if attempts:
            return OutcomeKind(word(attempts[-1], "outcome"))
        return None
    except ValueError:
        return None


def row_of(body: UntrustedObject) -> TaskRunOfList:
    """Return a TaskRun as a row of a list."""
    waiting = condition(body, "Waiting")
    return TaskRunOfList(
        namespace=word(body, "metadata.namespace"),
        name=word(body, "metadata.name"),
        phase=phase(body),
        service=word(body, "spec.service"),
        task=word(body, "spec.task"),
        agent=word(body, "spec.agent"),
        attempt=count(body, "status.attempt"),
        receipt=word(body, "status.receipt"),
        work=word(body, "status.work"),
        session_id=word(body, "status.sessionId"),
        reason=word(waiting, "message") or word(body, "status.reason"),
        run_after=milliseconds(word(body, "status.runAfter")),
        created=milliseconds(word(body, "metadata.creationTimestamp")),
    )


def report_of(body: UntrustedObject) -> TaskRunReport:
    """Return a TaskRun with its attempts."""
    row = row_of(body)
    return TaskRunReport(
        schema_version=SCHEMA_VERSION,
        namespace=row.namespace,
        name=row.name,
        phase=row.phase,
        service=row.service,
        task=row.task,
        agent=row.agent,
        attempt=row.attempt,
        receipt=row.receipt,
        work=row.work,
        session_id=row.session_id,
        reason=row.reason,
        run_after=row.run_after,
        created=row.created,
        uid=word(body, "metadata.uid"),
        suspend=part(body, "spec").get("suspend") is True,
        policy=plain_word(word(body, "spec.policy.continuity")),
        context_version=count(body, "spec.contextVersion"),
        recorded_version=count(body, "status.contextVersion"),
        attempts_allowed=count(body, "status.attemptsAllowed")
        or count(body, "spec.policy.attempts"),
        workspace=_workspace(body),
        usage=_usage(part(body, "status.usage")),
        conditions=list(map(_condition, several(body, "status.conditions"))),
        attempts=list(map(_attempt, several(body, "status.attempts"))),
        requests=list(map(_request, several(body, "status.requests"))),
    )


def why_of(report: TaskRunReport) -> TaskRunWhyReport:
    """Return the part of a TaskRun's report that `why --json` prints."""
    return TaskRunWhyReport(
        schema_version=report.schema_version,
        namespace=report.namespace,
        name=report.name,
        phase=report.phase,
        reason=report.reason,
        run_after=report.run_after,
        policy=report.policy,
        conditions=report.conditions,
        attempts=report.attempts,
    )


def milliseconds(text: str) -> int:
    """Return an RFC 3339 time as milliseconds since 1970; 0 if it is not valid."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if found.tzinfo is not None:
        return int(found.timestamp() * 1000)
    return 0


def _workspace(body: UntrustedObject) -> WorkspaceOfTaskRun:
    place = part(body, "status.workspace")
    return WorkspaceOfTaskRun(
        mode=word(body, "spec.workspace.mode"),
        claim=word(place, "claimName"),
        path=word(place, "path"),
        branch=word(place, "branch"),
        commit=word(place, "commit"),
        checkpoints=word(place, "checkpoints"),
        saved=place.get("saved") is True,
    )


def _condition(found: UntrustedObject) -> ConditionOfTaskRun:
    return ConditionOfTaskRun(
        type=word(found, "type"),
        status=word(found, "status"),
        reason=word(found, "reason"),
        message=word(found, "message"),
        since=milliseconds(word(found, "lastTransitionTime")),
    )


def _attempt(found: UntrustedObject) -> AttemptOfTaskRun:
    code = found.get("exitCode")
    return AttemptOfTaskRun(
        number=count(found, "number"),
        context_version=count(found, "contextVersion") or 1,
        job=word(found, "job"),
        pod=word(found, "pod"),
        node=word(found, "node"),
        started=milliseconds(word(found, "started")),
        ended=milliseconds(word(found, "ended")),
        outcome=word(found, "outcome"),
        detail=word(found, "detail"),
        infrastructure=found.get("infrastructure") is True,
        exit_code=code if isinstance(code, int) else None,
        session_id=word(found, "sessionId"),
        work=_work(part(found, "work")),
        verdict=word(found, "receipt.verdict"),
        rung=word(found, "receipt.rung"),
        reasons=_texts(part(found, "receipt").get("reasons")),
        usage=_usage(part(found, "usage")),
    )


def _work(found: UntrustedObject) -> WorkOfAttempt:
    pushed = found.get("pushed")
    return WorkOfAttempt(
        verdict=word(found, "verdict"),
        reason=word(found, "reason"),
        files=count(found, "files"),
        commits=count(found, "commits"),
        pushed=pushed if isinstance(pushed, bool) else None,
        denied=count(found, "denied"),
        question=word(found, "question"),
    )


def _texts(found: object) -> list[str]:
    """Return the texts in a list; empty if it is not a list."""
    if isinstance(found, list):
        return [each for each in found if isinstance(each, str)]
    return []


def _request(found: UntrustedObject) -> RequestOfTaskRun:
    return RequestOfTaskRun(
        number=count(found, "number"),
        id=word(found, "id"),
        attempt=count(found, "attempt"),
        kind=word(found, "kind"),
        tool=word(found, "tool"),
        text=word(found, "text"),
        size=count(found, "size"),
        sha256=word(found, "sha256"),
        expires=milliseconds(word(found, "expires")),
        answer=word(found, "answer"),
        words=word(found, "words"),
        by=word(found, "by"),
        answered=milliseconds(word(found, "answered")),
    )


def _usage(found: UntrustedObject) -> UsageOfTaskRun:
    return UsageOfTaskRun(
        input=count(found, "inputTokens"),
        output=count(found, "outputTokens"),
        cost_usd=dollars_or_zero(found.get("costUSD")),
    )
