"""Distinguishes the objects of a TaskRun from those that only look like its own. Pure; called by
`step` and `launch`.

Labels and names prove nothing: a copy of a pod keeps its labels, and a ConfigMap's name may already
be taken. Jobs and ConfigMaps that the operator creates have the TaskRun as their controller; pods
have such a Job. A claim has no owner, because the work outlives its TaskRun. It is recognized by
its name, by perdure's labels, and because only one pod at a time can write to it. All other objects
are ignored, reported, and left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.kubernetes.manifests import MADE_BY
from perdure.kubernetes.snapshot import UID_LABEL, JobSeen, PodSeen, controller
from perdure.kubernetes.status import TaskRunStatus
from perdure.kubernetes.wanted import KIND, WantedRun

MOST_NAMED = 3


def owned(body: dict[str, Any], run: WantedRun) -> bool:
    """Return whether an object was made for this TaskRun."""
    return controller(body["metadata"]) == (KIND, run.uid)


def apart(
    pods: Sequence[PodSeen], jobs: Sequence[JobSeen], status: TaskRunStatus
) -> tuple[list[PodSeen], list[PodSeen]]:
    """Split the pods into those of the TaskRun's own Jobs, and existing pods that have its labels
    but belong to none of its Jobs."""
    mine = {(job.uid, job.attempt) for job in jobs} | {
        (each.job_uid, each.number) for each in status.attempts if each.job_uid
    }
    own = [pod for pod in pods if (pod.owner, pod.attempt) in mine]
    return own, [pod for pod in pods if not pod.gone and (pod.owner, pod.attempt) not in mine]


def told_of(foreign: Sequence[PodSeen]) -> str:
    """Return the sentence that reports foreign pods; empty if there are none."""
    if not foreign:
        return ""
    names = sorted(pod.name for pod in foreign)
    if len(names) > MOST_NAMED:
        more = f" and {len(names) - MOST_NAMED} more"
    else:
        more = ""
    return (
        f"{', '.join(names[:MOST_NAMED])}{more}: a pod with the labels of this TaskRun that is of "
        f"none of its Jobs is passed over; delete it, or take its label {UID_LABEL} off"
    )


def is_claim(body: dict[str, Any]) -> bool:
    """Return whether a claim was made by perdure, and lets only one pod at a time write."""
    labels = body["metadata"].get("labels") or {}
    ours = labels.get(MADE_BY[0]) == MADE_BY[1] and bool(labels.get(UID_LABEL))
    return ours and (body.get("spec") or {}).get("accessModes") == ["ReadWriteOncePod"]
