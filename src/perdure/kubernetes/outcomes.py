"""Determines how an attempt ended, and why an attempt cannot start. Pure.

Three sources tell how an attempt ended. The first source is the result in the pod's termination
message. The agent can write this message too, so a result is trusted only if it agrees with the
exit code and the attempt's number. The second source is the pod's state, as the kubelet and the
controllers set it: out of memory, evicted, past its deadline, no image. The last source is the
absence of an object: a Job was deleted, or a pod is gone.

If the task did not cause the end (eviction, preemption, a lost node, a deleted pod), the attempt is
marked `infrastructure`. Such an attempt does not count toward the allowed number of attempts. This
holds for at most `lifecycle.FREE_LIMIT` of them in a row.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from perdure.kubernetes.result import AttemptResult, trusted_result
from perdure.kubernetes.snapshot import JobSeen, PodSeen
from perdure.kubernetes.spec import Mode
from perdure.kubernetes.status import safe_line
from perdure.model import Outcome, OutcomeKind

UNTIMED = frozenset({"QuotaExceeded", "NoRoom", "ClaimInUse"})
"""Obstacles that disappear when other attempts end. An attempt waits for them without a time limit.
"""
ADVICE = {
    OutcomeKind.NEEDS_INPUT: (
        "the agent waits for a person: kubectl perdure update NAME gives the answer as new "
        "instructions; where a call was denied, allow it (spec.permissions, or the agent's own "
        "settings), then kubectl perdure retry NAME"
    ),
    OutcomeKind.DENIED: (
        "a tool call of the agent was denied: allow it (spec.permissions, or the agent's own "
        "settings), then kubectl perdure retry NAME"
    ),
}
"""Advice for a person on a cluster after an agent asked a question or was denied a call. It
replaces the advice in `lifecycle.NEEDS_PERSON`, which names options that the commands for a cluster
lack."""
OVERDUE_MS = 10_000
"""Time in milliseconds after the end of a deleted pod's grace period. A pod that still exists after
this time is on a lost node, because a live kubelet would have removed it."""
QUIET_MS = 10_000
"""Time in milliseconds that a Job or pod has to start. If it has not started by then, its Events
are read for the reason."""

DISRUPTED = frozenset(
    {
        "Evicted",
        "NodeLost",
        "Preempting",
        "Shutdown",
        "NodeShutdown",
        "Terminated",
        "NodeAffinity",
        "UnexpectedAdmissionError",
    }
)
NO_START = frozenset(
    {"StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError"}
)
PULL = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
CODES: dict[int, tuple[OutcomeKind, str]] = {
    0: (OutcomeKind.SUCCEEDED, "its pod succeeded, but its result could not be read"),
    1: (OutcomeKind.FAILED, "its pod ended with exit code 1 and no result"),
    2: (
        OutcomeKind.CONFIG_ERROR,
        "perdure in the pod could not use its input (exit code 2)",
    ),
    3: (OutcomeKind.NEEDS_INPUT, "perdure in the pod needs a person (exit code 3)"),
    4: (OutcomeKind.AUTH_FAILED, "the agent has no valid credentials (exit code 4)"),
    5: (
        OutcomeKind.CONFIG_ERROR,
        "the image lacks something that the task needs, such as its agent (exit code 5)",
    ),
    6: (OutcomeKind.WRITER_CONFLICT, "another process uses the task's state (exit code 6)"),
    7: (OutcomeKind.CONFIG_ERROR, "the task's state or workdir could not be used (exit code 7)"),
    126: (OutcomeKind.CONFIG_ERROR, "the image cannot run perdure (exit code 126)"),
    127: (OutcomeKind.CONFIG_ERROR, "the image has no perdure (exit code 127)"),
    128: (OutcomeKind.CONFIG_ERROR, "the container could not be started (exit code 128)"),
}
"""Outcome of an attempt and its explanation, by the exit code of a pod without a usable result."""


class End(Struct, frozen=True, kw_only=True):
    """How an attempt ended."""

    outcome: Outcome
    infrastructure: bool = False
    result: AttemptResult | None = None
    pod: PodSeen | None = None
    absent: bool = False
    """Whether the end was concluded only because an object is missing. The operator then reads the
    objects from the API server again before it relies on this."""


class Obstacle(Struct, frozen=True):
    """An obstacle that keeps an attempt from starting or proceeding. The message also says what to
    do."""

    reason: str
    message: str


def ended(
    attempt: int, job: JobSeen | None, pods: Sequence[PodSeen], *, mode: Mode, asked: bool, now: int
) -> End | None:
    """Return how the attempt ended; None while the attempt may still be running. `pods` are the
    pods of the attempt. `asked` means that a person asked to stop the attempt."""
    live = [pod for pod in pods if pod.live]
    if live:
        # A pod on a lost node may still be running. In workspace mode `Claim` it could still write
        # to the volume, so wait for it. In the other modes it can publish nothing once the next pod
        # has begun a new term (see `pod_state`).
        if mode == "Claim" or not all(overdue(pod, now) for pod in live):
            return None
        return _stopped(asked, "its node is lost", pod=live[-1])
    if pods:
        return _of_pod(attempt, max(pods, key=_rank), asked)
    if job is None:
        return _stopped(asked, "its Job was deleted", absent=True)
    if job.complete:
        return End(
            outcome=Outcome(
                kind=OutcomeKind.SUCCEEDED,
                detail="its Job is complete, and its pod is gone with its result",
            ),
            absent=True,
        )
    if job.failed == "DeadlineExceeded":
        return End(
            outcome=Outcome(
                kind=OutcomeKind.TIMED_OUT,
                detail="its Job reached its deadline, and its pod is gone",
            ),
            absent=True,
        )
    if job.failed:
        return _stopped(
            asked,
            f"its pod is gone with its result; its Job says {safe_line(job.failed, 60)}",
            absent=True,
        )
    return None


def overdue(pod: PodSeen, now: int) -> bool:
    """Return whether a deleted pod still exists although its grace period ended more than
    `OVERDUE_MS` ago."""
    return bool(pod.deleted) and now > pod.deleted + OVERDUE_MS


def _rank(pod: PodSeen) -> tuple[bool, int, str]:
    """Return a sort key that sorts the most informative pod last. A pod whose container has ended
    comes after a pod whose container has not; newer pods come after older ones."""
    return pod.ended is not None, pod.created, pod.name


def _of_pod(attempt: int, pod: PodSeen, asked: bool) -> End:
    over = pod.ended
    if over is not None:
        result = trusted_result(over.message, attempt, over.code)
    else:
        result = None
    if result is not None:
        return _by_result(result, pod, asked)
    if pod.reason == "DeadlineExceeded":
        return End(
            outcome=Outcome(kind=OutcomeKind.TIMED_OUT, detail="its pod reached its deadline"),
            pod=pod,
        )
    if over is not None and over.reason == "OOMKilled":
        detail = "its pod ran out of memory: raise spec.pod.resources.limits.memory"
        return End(outcome=Outcome(kind=OutcomeKind.FAILED, detail=detail, code=over.code), pod=pod)
    if why := _disruption(pod):
        return _stopped(asked, why, pod=pod)
    if over is None:
        return _stopped(asked, "its pod is gone, and its end is unknown", pod=pod, absent=pod.gone)
    if over.reason in NO_START:
        detail = (
            f"its container could not be started: {safe_line(over.message, 300) or over.reason}"
        )
        return End(
            outcome=Outcome(kind=OutcomeKind.CONFIG_ERROR, detail=detail, code=over.code), pod=pod
        )
    if over.code in CODES:
        kind, detail = CODES[over.code]
        return End(outcome=Outcome(kind=kind, detail=detail, code=over.code), pod=pod)
    return _stopped(asked, _killed(over.code), pod=pod)


def _by_result(result: AttemptResult, pod: PodSeen, asked: bool) -> End:
    outcome = replace(result.outcome, detail=safe_line(result.outcome.detail))
    if outcome.kind is not OutcomeKind.LOST:
        return End(outcome=outcome, result=result, pod=pod)
    if pod.reason == "DeadlineExceeded":
        timed_out = replace(
            outcome,
            kind=OutcomeKind.TIMED_OUT,
            detail="its pod reached its deadline, and ended normally",
        )
        return End(outcome=timed_out, result=result, pod=pod)
    detail = _disruption(pod) or outcome.detail
    if asked:
        return End(
            outcome=replace(outcome, kind=OutcomeKind.CANCELLED, detail="stopped on request"),
            result=result,
            pod=pod,
        )
    return End(outcome=replace(outcome, detail=detail), infrastructure=True, result=result, pod=pod)


def _stopped(asked: bool, why: str, *, pod: PodSeen | None = None, absent: bool = False) -> End:
    if pod is not None and pod.ended is not None:
        code = pod.ended.code
    else:
        code = None
    if asked:
        return End(
            outcome=Outcome(kind=OutcomeKind.CANCELLED, detail="stopped on request", code=code),
            pod=pod,
            absent=absent,
        )
    return End(
        outcome=Outcome(kind=OutcomeKind.LOST, detail=why, code=code),
        infrastructure=True,
        pod=pod,
        absent=absent,
    )


def _disruption(pod: PodSeen) -> str:
    """Return why the cluster ended the pod; empty if the cluster did not end it."""
    words = {
        "PreemptionByScheduler": "its pod was preempted by one of a higher priority",
        "DeletionByTaintManager": "its pod was ended because its node is not ready or tainted",
        "EvictionByEvictionAPI": "its pod was evicted, as when a node is drained",
        "DeletionByPodGC": "its node is gone",
        "TerminationByKubelet": (
            "its pod was ended by its node, which lacks a resource or is shutting down"
        ),
    }
    reason = pod.disruption or (
        pod.reason if pod.reason in DISRUPTED or pod.reason.startswith("OutOf") else ""
    )
    described = words.get(
        reason, f"its pod was ended by the cluster: {safe_line(reason, 60)}" if reason else ""
    )
    if described and pod.message:
        return f"{described} ({safe_line(pod.message, 300)})"
    return described


def _killed(code: int | None) -> str:
    """Return an explanation of an exit code that is not in `CODES`."""
    if code == 75:
        return "its pod asks for another try (exit code 75)"
    try:
        return f"its pod was killed ({signal.Signals((code or 0) - 128).name})"
    except ValueError:
        return f"its pod ended with exit code {code} and no result"


def obstacle_of(
    job: JobSeen | None, pods: Sequence[PodSeen], notes: str, now: int
) -> Obstacle | None:
    """Return the obstacle that keeps an attempt from starting; None if there is none. A lost node
    is an obstacle even after the start. `notes` are the messages of the Events about the attempt's
    Job or pod."""
    live = [pod for pod in pods if pod.live]
    lost = next((pod for pod in live if overdue(pod, now)), None)
    if lost is not None:
        how = (
            f"kubectl delete node {lost.node}, or taint it with node.kubernetes.io/out-of-service, "
            "once it is certain that it is off"
        )
        return Obstacle(
            "NodeLost",
            f"node {lost.node} does not answer, and may still write to the volume: {how}",
        )
    if job is None or job.suspended or job.deleting:
        return None
    if not live:
        if now > job.created + QUIET_MS:
            return _of_notes(notes, "PodMissing", "its Job has made no pod yet")
        return None
    pod = live[-1]
    if pod.started or pod.deleted:
        return None
    what = safe_line(pod.waiting_message, 300)
    if pod.waiting in PULL:
        return Obstacle(
            "ImagePullFailed",
            f"{pod.waiting}: {what}; check spec.pod.image and spec.pod.imagePullSecrets",
        )
    if pod.waiting == "CreateContainerConfigError":
        return Obstacle(
            "SecretMissing" if "secret" in what.lower() else "InvalidPod",
            f"{what}; create what is missing, perdure looks for it again",
        )
    if pod.waiting in NO_START or pod.waiting == "CrashLoopBackOff":
        return Obstacle("InvalidPod", f"{pod.waiting}: {what}")
    if pod.unscheduled:
        place = _of_place(safe_line(pod.unscheduled, 500))
        return (
            place if place.reason != "ClaimPending" or now > pod.created + QUIET_MS else None
        )  # Creating a volume takes a while, so a missing volume is reported only after `QUIET_MS`.
    if now > pod.created + QUIET_MS:
        return _of_notes(notes, "", "")
    return None


def unexplained(job: JobSeen | None, pods: Sequence[PodSeen], now: int) -> str:
    """Return the uid of the Job or pod whose Events should be read. That is an object which has not
    started for a while and whose status does not say why. Return an empty string if there is none.
    """
    live = [pod for pod in pods if pod.live]
    if job is None or job.suspended or job.finished or now <= job.created + QUIET_MS:
        return ""
    if not live:
        if not pods:
            return job.uid
        return ""
    pod = live[-1]
    if not (pod.started or pod.deleted or pod.unscheduled or now <= pod.created + QUIET_MS):
        return pod.uid
    return ""


_ROOM = (
    "insufficient",
    "too many pods",
    "were unschedulable",
    "node.kubernetes.io/",
    "free ports",
    "exceed max volume count",
    "no nodes available",
)
"""Phrases in the scheduler's messages (kube-scheduler 1.36, framework/plugins) about nodes that are
full or temporarily not ready."""


def _of_place(why: str) -> Obstacle:
    lower = why.lower()
    if "already in-use by another pod" in lower:
        return Obstacle("ClaimInUse", f"{why}; another attempt of the task is still running")
    if any(words in lower for words in _ROOM):
        return Obstacle("NoRoom", f"{why}; its pod starts when a node has room for it")
    if "persistentvolumeclaim" in lower or "volume" in lower:
        return Obstacle("ClaimPending", f"{why}; see kubectl describe pvc, and the storage class")
    return Obstacle(
        "Unschedulable", f"{why}; check spec.pod.resources, nodeSelector, tolerations and affinity"
    )


_WORDS = (
    ("exceeded quota", "QuotaExceeded", "free some of the namespace's quota, or raise it"),
    (
        "serviceaccount",
        "Forbidden",
        "create the service account, or change spec.pod.serviceAccountName",
    ),
    ("forbidden", "Forbidden", "allow it (Pod Security, admission, RBAC), or change spec.pod"),
    ("is invalid", "InvalidPod", "correct spec.pod"),
    ("secret", "SecretMissing", "create it: perdure looks for it again"),
    ("configmap", "ConfigMapMissing", "create it: perdure looks for it again"),
    ("volume", "ClaimPending", "see kubectl describe pvc and the node's events"),
)


def of_words(text: str) -> Obstacle | None:
    """Return the obstacle that an error of the API server or an Event describes; None if the text
    contains no known phrase."""
    lower = text.lower()
    for words, reason, what in _WORDS:
        if words in lower:
            return Obstacle(reason, f"{safe_line(text, 600)}; {what}")
    return None


def _of_notes(notes: str, reason: str, otherwise: str) -> Obstacle | None:
    found = of_words(notes)
    if found or not reason:
        return found
    more = f" ({safe_line(notes, 600)})" if notes else ""
    return Obstacle(reason, otherwise + more)
