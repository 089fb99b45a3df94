"""What belongs to a TaskRun, and what only looks like it. Pure; asked by `step` and `launch`.

Labels and names can be anybody's: a copy of a pod keeps its labels, a ConfigMap's name can be taken
before. What the operator makes for a TaskRun has it for its controller (Jobs, ConfigMaps), or has
such a Job (pods). A claim has no owner, since the work outlives its TaskRun: it is named after its
task, bears perdure's labels, and one pod at a time can write to it. All else is passed over, told,
and left alone.
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
    """Whether an object was made for this TaskRun."""
    return controller(body["metadata"]) == (KIND, run.uid)


def apart(
    pods: Sequence[PodSeen], jobs: Sequence[JobSeen], status: TaskRunStatus
) -> tuple[list[PodSeen], list[PodSeen]]:
    """The pods of the TaskRun's own Jobs, and those that are there, bear its labels and are of none
    of them."""
    mine = {(job.uid, job.attempt) for job in jobs} | {
        (each.job_uid, each.number) for each in status.attempts if each.job_uid
    }
    own = [pod for pod in pods if (pod.owner, pod.attempt) in mine]
    return own, [pod for pod in pods if not pod.gone and (pod.owner, pod.attempt) not in mine]


def told_of(foreign: Sequence[PodSeen]) -> str:
    """The sentence on such pods; empty where there are none."""
    if not foreign:
        return ""
    names = sorted(pod.name for pod in foreign)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return (
        f"{', '.join(names[:MOST_NAMED])}{more}: a pod with the labels of this TaskRun that is of "
        f"none of its Jobs is passed over; delete it, or take its label {UID_LABEL} off"
    )


def is_claim(body: dict[str, Any]) -> bool:
    """Whether a claim was made by perdure, which names it after its task, and lets one pod at a
    time write."""
    labels = body["metadata"].get("labels") or {}
    ours = labels.get(MADE_BY[0]) == MADE_BY[1] and bool(labels.get(UID_LABEL))
    return ours and (body.get("spec") or {}).get("accessModes") == ["ReadWriteOncePod"]
