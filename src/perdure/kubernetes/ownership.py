"""Distinguishes the objects of a TaskRun from objects that only look like its own, and decides
whether a TaskRun may be deleted. Pure. Called by `step`, `launch`, `claims` and `reconciler`.

Labels and names prove nothing: a copy of a pod keeps its labels, and a ConfigMap's name may already
be taken. A Job or ConfigMap belongs to a TaskRun if the TaskRun is its controller. A pod belongs to
it if the pod's controller is such a Job. A claim has no owner, because it outlives its TaskRun. It
is recognized by its name, by perdure's labels, and by its access mode (one writing pod at a time).
Other objects are never used or changed; foreign pods are reported.

The finalizer keeps a TaskRun from being deleted as long as its deletion could lose work. A TaskRun
whose work stays on a claim that is kept gets no finalizer. With `workspace.reclaim: Delete` the
finalizer stays until the claim is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.kubernetes.manifests import MADE_BY
from perdure.kubernetes.objects import KubernetesObject, labels_of
from perdure.kubernetes.snapshot import UID_LABEL, JobSeen, PodSeen, controller
from perdure.kubernetes.status import TaskRunStatus
from perdure.kubernetes.wanted import GROUP, KIND, WantedRun

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


def safe(run: WantedRun, status: TaskRunStatus) -> bool:
    """Return whether no work is lost if the TaskRun is deleted. That is so if all work is saved
    elsewhere, or stays on a claim that is kept, or if no attempt began.

    An attempt that began but has no Job may still have done work: its Job may have come and gone
    while no operator was running.
    """
    return kept(run) or status.workspace.saved or not status.attempt


def kept(run: WantedRun) -> bool:
    """Return whether all work remains on its volume when the TaskRun is deleted. Such a TaskRun
    needs no finalizer. Return False if the spec is invalid, because the volume is then unknown."""
    volume = run.spec.workspace
    if run.invalid:
        return False
    return volume.mode == "Shared" or (volume.mode == "Claim" and volume.reclaim == "Keep")


def claim_to_go(run: WantedRun) -> str:
    """Return the name of the claim to delete with the TaskRun; empty if the claim is kept."""
    volume = run.spec.workspace
    if volume.mode == "Claim" and volume.reclaim == "Delete":
        return run.status.workspace.claim_name or run.claim
    return ""


def gives_up(run: WantedRun, claim: str) -> bool:
    """Return whether a TaskRun no longer needs the claim: the TaskRun is being deleted, would
    itself delete the claim, and has only saved or abandoned work. Without this rule, two TaskRuns
    that share a claim and are deleted together would each keep the claim for the other."""
    if not run.deleting or run.invalid or claim_to_go(run) != claim:
        return False
    return run.abandoned or (run.status.open is None and safe(run, run.status))


def unsaved(run: WantedRun, status: TaskRunStatus) -> str:
    """Return a message about work that would be lost if the TaskRun were deleted. The message says
    where the work is, and which commands keep or abandon it."""
    where = f"is only on the claim {status.workspace.claim_name or run.claim}"
    if run.spec.workspace.mode != "Claim":
        where = "was done in a pod after its newest checkpoint"
    if status.attempts and not status.attempts[-1].pod:
        where = "may have been done in a pod that was not observed"
    return (
        f"work of attempt {status.attempt} {where} and would be lost with the TaskRun;{_keep(run)} "
        f"to delete it anyway: kubectl annotate taskruns.perdure.dev {run.name} "
        f"{GROUP}/abandon=true"
    )


def _keep(run: WantedRun) -> str:
    """Return advice that names the command to make the TaskRun keep its claim, after which the
    TaskRun can be deleted; empty if the TaskRun has no claim."""
    if run.spec.workspace.mode != "Claim":
        return ""
    patch = '{"spec":{"workspace":{"reclaim":"Keep"}}}'
    return (
        f" to keep the claim: kubectl patch taskruns.perdure.dev {run.name} --type merge -p "
        f"'{patch}';"
    )
