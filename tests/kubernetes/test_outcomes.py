"""The outcome of an attempt, from its pod's result, its pod's state, and missing objects; and the
reasons why an attempt cannot begin."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.kubernetes.outcomes import OVERDUE_MS, ended, obstacle_of
from perdure.kubernetes.snapshot import job_seen, pod_seen
from perdure.kubernetes.status import moment
from perdure.model import OutcomeKind
from tests.kubernetes import making

RUN = making.taskrun()
NOW = moment("2026-11-21T10:10:00Z")


def end(
    pod: dict[str, Any] | None,
    *,
    asked: bool = False,
    mode: Any = "Claim",
    conditions: dict[str, str] | None = None,
    job: bool = True,
) -> Any:
    pods = [seen] if pod is not None and (seen := pod_seen(pod)) is not None else []
    found = job_seen(making.job(RUN, 1, conditions=conditions)) if job else None
    return ended(1, found, pods, mode=mode, asked=asked, now=NOW)


def over(state: dict[str, Any], **status: Any) -> dict[str, Any]:
    phase = "Succeeded" if state["terminated"]["exitCode"] == 0 else "Failed"
    return making.pod(RUN, 1, phase=phase, state=state, **status)


@pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind is not OutcomeKind.LOST])
def test_what_the_pod_says_is_its_outcome(kind: OutcomeKind):
    """A result that agrees with the exit code and the attempt is used, and is attributed to the
    task."""
    found = end(over(making.told(1, kind, "so it was")))
    assert (found.outcome.kind, found.outcome.detail, found.infrastructure) == (
        kind,
        "so it was",
        False,
    )
    assert found.result is not None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (making.told(2, OutcomeKind.SUCCEEDED)["terminated"]["message"], 1),
        (making.told(1, OutcomeKind.SUCCEEDED)["terminated"]["message"], 1),
        ('{"version":1,"attempt":1', 1),
        ("\x1b[31m" * 800, 1),
    ],
)
def test_a_forged_result_is_not_believed(message: str, code: int):
    """A result of another attempt, one that contradicts the exit code, an incomplete one and
    invalid JSON are ignored. Then the exit code decides."""
    found = end(over(making.ended(code, message)))
    assert found.outcome.kind is OutcomeKind.FAILED and found.result is None


STATES: list[tuple[str, dict[str, Any], dict[str, Any], OutcomeKind, bool]] = [
    ("out of memory", making.ended(137, reason="OOMKilled"), {}, OutcomeKind.FAILED, False),
    ("killed", making.ended(137), {}, OutcomeKind.LOST, True),
    (
        "asked to end",
        making.told(1, OutcomeKind.LOST, "its pod was asked to end"),
        {},
        OutcomeKind.LOST,
        True,
    ),
    (
        "deadline",
        making.told(1, OutcomeKind.LOST),
        {"reason": "DeadlineExceeded"},
        OutcomeKind.TIMED_OUT,
        False,
    ),
    (
        "deadline, no word",
        making.ended(137),
        {"reason": "DeadlineExceeded"},
        OutcomeKind.TIMED_OUT,
        False,
    ),
    (
        "evicted by its node",
        making.ended(143),
        {"reason": "Evicted", "message": "low on disk"},
        OutcomeKind.LOST,
        True,
    ),
    ("no perdure in the image", making.ended(127), {}, OutcomeKind.CONFIG_ERROR, False),
    (
        "not to be started",
        making.ended(128, "exec: no such file", "StartError"),
        {},
        OutcomeKind.CONFIG_ERROR,
        False,
    ),
    ("no credentials", making.ended(4), {}, OutcomeKind.AUTH_FAILED, False),
    ("ended well, and its result is gone", making.ended(0), {}, OutcomeKind.SUCCEEDED, False),
    ("unknown code", making.ended(42), {}, OutcomeKind.LOST, True),
]
for reason in (
    "PreemptionByScheduler",
    "DeletionByTaintManager",
    "EvictionByEvictionAPI",
    "DeletionByPodGC",
    "TerminationByKubelet",
):
    condition = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}
    STATES.append((reason, making.ended(143), condition, OutcomeKind.LOST, True))


@pytest.mark.parametrize(
    ("name", "state", "status", "kind", "infrastructure"), STATES, ids=[row[0] for row in STATES]
)
def test_what_the_pods_state_says(
    name: str,
    state: dict[str, Any],
    status: dict[str, Any],
    kind: OutcomeKind,
    infrastructure: bool,
):
    """For each way in which a pod can end without a result, there is one outcome, which says
    whether the task or the cluster caused it."""
    found = end(over(state, **dict(status)))
    assert (found.outcome.kind, found.infrastructure) == (kind, infrastructure)
    assert found.outcome.detail and not found.absent


@pytest.mark.parametrize(
    ("job", "conditions", "kind"),
    [
        (False, {}, OutcomeKind.LOST),
        (True, {"Failed": "DeadlineExceeded"}, OutcomeKind.TIMED_OUT),
        (True, {"Failed": "PodFailurePolicy"}, OutcomeKind.LOST),
        (True, {"Complete": ""}, OutcomeKind.SUCCEEDED),
    ],
)
def test_what_is_not_there(job: bool, conditions: dict[str, str], kind: OutcomeKind):
    """If there is no pod, the Job decides, and if there is no Job, the attempt is lost. Both need a
    fresh read of the cluster. A running Job has not ended."""
    found = end(None, job=job, conditions=conditions)
    assert found.outcome.kind is kind and found.absent
    assert end(None) is None


def test_a_stop_by_a_person_is_no_failure():
    """If a person wants the run to stop, the outcome is `cancelled` for a pod that was asked to
    end, was killed or is gone. A success still counts."""
    for pod in (over(making.told(1, OutcomeKind.LOST)), over(making.ended(137))):
        assert end(pod, asked=True).outcome.kind is OutcomeKind.CANCELLED
    assert end(None, job=False, asked=True).outcome.kind is OutcomeKind.CANCELLED
    assert (
        end(over(making.told(1, OutcomeKind.SUCCEEDED)), asked=True).outcome.kind
        is OutcomeKind.SUCCEEDED
    )


def test_a_pod_on_a_lost_node():
    """A pod on a lost node cannot end normally. With a claim the operator waits for it, and a
    condition says what to do. If a term fences it off, the attempt counts as lost."""
    pod = making.pod(RUN, 1, metadata={"deletionTimestamp": "2026-11-21T10:00:00Z"})
    assert end(pod) is None
    found = end(pod, mode="Checkpoints")
    assert found.outcome.kind is OutcomeKind.LOST and found.infrastructure
    seen = pod_seen(pod)
    assert seen is not None and obstacle_of(None, [seen], "", NOW).reason == "NodeLost"  # type: ignore[union-attr]
    assert obstacle_of(None, [seen], "", seen.deleted + OVERDUE_MS - 1) is None


def unplaced(why: str) -> dict[str, str]:
    """Return the condition of a pod for which the scheduler found no node."""
    return {"type": "PodScheduled", "status": "False", "message": why}


WAITING: list[tuple[dict[str, Any], str, str]] = [
    (
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}},
        "",
        "ImagePullFailed",
    ),
    (
        {
            "state": {
                "waiting": {
                    "reason": "CreateContainerConfigError",
                    "message": 'secret "x" not found',
                }
            }
        },
        "",
        "SecretMissing",
    ),
    (
        {"state": {"waiting": {"reason": "ContainerCreating"}}},
        'MountVolume.SetUp failed: secret "x" not found',
        "SecretMissing",
    ),
    ({"state": {}, "conditions": [unplaced("0/2 nodes: Insufficient cpu")]}, "", "NoRoom"),
    (
        {"state": {}, "conditions": [unplaced("0/2 nodes: node(s) didn't match Pod's selector")]},
        "",
        "Unschedulable",
    ),
    (
        {
            "state": {},
            "conditions": [
                unplaced(
                    "PersistentVolumeClaim with ReadWriteOncePod already in-use by another pod"
                )
            ],
        },
        "",
        "ClaimInUse",
    ),
    (
        {
            "state": {},
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "message": "unbound PersistentVolumeClaims",
                }
            ],
        },
        "",
        "ClaimPending",
    ),
]


@pytest.mark.parametrize(("status", "notes", "reason"), WAITING)
def test_what_keeps_a_pod_from_beginning(status: dict[str, Any], notes: str, reason: str):
    """For a pod that cannot begin there is a reason and advice."""
    job, pod = job_seen(making.job(RUN, 1)), pod_seen(making.pod(RUN, 1, phase="Pending", **status))
    assert job is not None and pod is not None
    found = obstacle_of(job, [pod], notes, NOW)
    assert found is not None and found.reason == reason and ";" in found.message


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: small', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity', "Forbidden"),
        ("error looking up service account a/b: serviceaccount not found", "Forbidden"),
        ("", "PodMissing"),
    ],
)
def test_a_job_that_gets_no_pod(notes: str, reason: str):
    """The Job's events give the reason why it gets no pod. Nothing is reported before the Job had
    time to make one, or while a queue holds the Job back."""
    job = job_seen(making.job(RUN, 1))
    assert job is not None
    assert obstacle_of(job, [], notes, NOW).reason == reason  # type: ignore[union-attr]
    assert obstacle_of(job, [], notes, job.created) is None
    waiting = job_seen(making.job(RUN, 1, suspend=True))
    assert obstacle_of(waiting, [], notes, NOW) is None
