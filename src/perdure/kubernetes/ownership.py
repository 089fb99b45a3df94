"""Distinguishes the objects of a TaskRun from objects that only look like its own. Pure. Called by
`step` and `launch`.

Labels and names prove nothing: a copy of a pod keeps its labels, and a ConfigMap's name may already
be taken. A Job or ConfigMap belongs to a TaskRun if the TaskRun is its controller. A pod belongs to
it if the pod's controller is such a Job. A claim has no owner, because it outlives its TaskRun. It
is recognized by its name, by perdure's labels, and by its access mode (one writing pod at a time).
Other objects are never used or changed; foreign pods are reported.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.kubernetes.manifests import MADE_BY
from perdure.kubernetes.objects import KubernetesObject, labels_of
from perdure.kubernetes.snapshot import UID_LABEL, JobSeen, PodSeen, controller
from perdure.kubernetes.status import TaskRunStatus
from perdure.kubernetes.wanted import KIND, WantedRun

MOST_NAMED = 3


def owned(body: KubernetesObject, run: WantedRun) -> bool:
    """Return whether the TaskRun is the controller of an object."""
    return controller(body) == (KIND, run.uid)


def split_by_owner(
    pods: Sequence[PodSeen], jobs: Sequence[JobSeen], status: TaskRunStatus
) -> tuple[list[PodSeen], list[PodSeen]]:
    """Split pods by ownership. Return the pods that belong to the TaskRun's own Jobs, and the
    foreign pods that still exist and only have the TaskRun's labels."""
    mine = {(job.uid, job.attempt) for job in jobs}
    mine |= {(each.job_uid, each.number) for each in status.attempts if each.job_uid}
    own = [pod for pod in pods if (pod.owner, pod.attempt) in mine]
    return own, [pod for pod in pods if not pod.gone and (pod.owner, pod.attempt) not in mine]


def foreign_message(foreign: Sequence[PodSeen]) -> str:
    """Return a message that reports the foreign pods; empty if there are none."""
    if not foreign:
        return ""
    names = sorted(pod.name for pod in foreign)
    if len(names) > MOST_NAMED:
        more = f" and {len(names) - MOST_NAMED} more"
    else:
        more = ""
    return (
        f"{', '.join(names[:MOST_NAMED])}{more}: a pod is ignored if it has the labels of this "
        f"TaskRun but belongs to none of its Jobs; delete it, or remove its label {UID_LABEL}"
    )


def is_claim(body: KubernetesObject) -> bool:
    """Return whether an object is a claim that perdure created and that only one pod at a time can
    mount."""
    labels = labels_of(body)
    ours = labels.get(MADE_BY[0]) == MADE_BY[1] and bool(labels.get(UID_LABEL))
    return ours and (body.get("spec") or {}).get("accessModes") == ["ReadWriteOncePod"]
