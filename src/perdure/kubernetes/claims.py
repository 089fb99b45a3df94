"""Creates, checks and deletes the volume claim of a task. `launch` calls `claimed` for the claim of
a pod. `reconciler` calls `drop` when a TaskRun that says `reclaim: Delete` is deleted.

A claim is deleted only if every TaskRun that used it says `reclaim: Delete` and was deleted with
its work saved, and no other TaskRun uses it. A TaskRun that says `Keep` removes the label
`perdure.dev/reclaim: Delete` from the claim and records its own uid on the claim. If that TaskRun
later says `Delete`, the claim may be deleted after all, unless another TaskRun has also said
`Keep`.

A TaskRun puts its own labels on the claim before a pod mounts it. The deletion names the version of
the claim that was checked, so it fails if another TaskRun has begun to use the claim since.
"""

from __future__ import annotations

from perdure.kubernetes import api as kinds
from perdure.kubernetes import manifests, ownership
from perdure.kubernetes.api import Api, Refused
from perdure.kubernetes.memory import ClusterCache
from perdure.kubernetes.objects import (
    KubernetesObject,
    annotations_of,
    is_being_deleted,
    labels_of,
)
from perdure.kubernetes.outcomes import Obstacle
from perdure.kubernetes.ownership import is_claim
from perdure.kubernetes.snapshot import UID_LABEL
from perdure.kubernetes.wanted import WantedRun, wanted


async def claimed(api: Api, memory: ClusterCache, run: WantedRun) -> str | Obstacle:
    """Return the name of the TaskRun's volume claim; an empty string if `spec.workspace.mode` is
    not `Claim`. A TaskRun that continues the conversation of another TaskRun uses that TaskRun's
    claim. Any other TaskRun has a claim of its own, which is created if it does not exist. Return
    Obstacle if the claim cannot be used.

    Raises Refused.
    """
    if run.spec.workspace.mode != "Claim":
        return ""
    source = run.spec.resume.from_
    if not source or source == run.name:
        own = await api.create_or_get(kinds.CLAIM, manifests.claim(run))
        return await _marked(api, run, run.claim, own)
    # After the first attempt the status has the claim's name. The TaskRun whose conversation is
    # continued may be gone by then.
    used = run.status.workspace.claim_name
    if used:
        return await _marked(api, run, used, await api.get(kinds.CLAIM, run.namespace, used))
    found = memory.of((run.namespace, source))
    if found is not None:
        body = None
    else:
        body = await api.get(kinds.RUN, run.namespace, source)
    if found is not None:
        other = found[0]
    elif body is not None:
        other = wanted(body)
    else:
        other = None
    if other is None:
        return Obstacle(
            "ClaimPending", f"spec.resume.from names TaskRun {source}, which does not exist"
        )
    if other.spec.workspace.mode != "Claim":
        return Obstacle(
            "ClaimPending",
            f"spec.resume.from names TaskRun {source}, which has no claim of its own",
        )
    name = other.status.workspace.claim_name or other.claim
    return await _marked(api, run, name, await api.get(kinds.CLAIM, run.namespace, name))


async def drop(api: Api, run: WantedRun, name: str) -> None:
    """Delete the claim of a TaskRun that is being deleted, unless another TaskRun asked to keep it
    or may have work on it."""
    body = await api.get(kinds.CLAIM, run.namespace, name)
    if body is None or not is_claim(body) or not _may_go(body, run):
        return
    # Ask the API server, because the operator's cache may still lack some TaskRuns shortly after
    # its start.
    others = await api.reduced(kinds.RUN, run.namespace, wanted)
    for each in others:
        may_use = each.uid != run.uid and each.may_use_claim(name, run.name)
        if may_use and not ownership.gives_up(each, name):
            return
    meta = body["metadata"]
    await api.delete(
        kinds.CLAIM, run.namespace, name, uid=meta["uid"], version=meta["resourceVersion"]
    )


async def keep(api: Api, run: WantedRun) -> None:
    """Record on the claim of a TaskRun that the TaskRun keeps it. The operator calls this before it
    removes the finalizer. The start of an attempt records the same (`_marked`), but after the
    removal of the finalizer there may be no further attempt."""
    if run.spec.workspace.mode != "Claim":
        return
    name = run.status.workspace.claim_name or run.claim
    body = await api.get(kinds.CLAIM, run.namespace, name)
    if body is None or not is_claim(body) or _is_kept_by(body, run):
        return
    change = {
        "metadata": {
            "resourceVersion": body["metadata"]["resourceVersion"],
            "labels": {manifests.RECLAIM_LABEL: None},
            "annotations": {manifests.KEPT_FOR: _keepers(body, run)},
        }
    }
    await api.patch(kinds.CLAIM, run.namespace, name, change)


async def _marked(
    api: Api, run: WantedRun, name: str, body: KubernetesObject | None
) -> str | Obstacle:
    """Put this TaskRun's labels on the claim `body`, to show that the TaskRun uses it. Return the
    claim's name, or Obstacle if the claim does not exist or cannot be used."""
    if body is None or is_being_deleted(body):
        return _going(name)
    if not is_claim(body):
        what = "that perdure did not make, or that several pods can write to"
        return Obstacle(
            "NameTaken",
            f"there is a PersistentVolumeClaim {name} {what}: move its data away and delete it",
        )
    marks: dict[str, str | None] = {**manifests.labels(run)}
    keeps: dict[str, str] = {}
    if run.spec.workspace.reclaim != "Delete" and not _is_kept_by(body, run):
        marks[manifests.RECLAIM_LABEL] = None
        keeps[manifests.KEPT_FOR] = _keepers(body, run)
    if labels_of(body).get(UID_LABEL) == run.uid and not keeps:
        return name
    change = {"metadata": {"labels": marks, "annotations": keeps}}
    try:
        body = await api.patch(kinds.CLAIM, run.namespace, name, change)
    except Refused as error:
        if error.code != 404:
            raise
        return _going(name)
    if is_being_deleted(body):
        return _going(name)
    return name


def _is_kept_by(body: KubernetesObject, run: WantedRun) -> bool:
    """Return whether the claim records that this TaskRun keeps it."""
    kept_for = annotations_of(body).get(manifests.KEPT_FOR)
    marked = labels_of(body).get(manifests.RECLAIM_LABEL) == "Delete"
    return not marked and kept_for in (run.uid, "several")


def _keepers(body: KubernetesObject, run: WantedRun) -> str:
    """Return the value to write into the claim's annotation so that this TaskRun keeps it: the
    TaskRun's uid, or `several` if another TaskRun may keep it too."""
    if labels_of(body).get(manifests.RECLAIM_LABEL) == "Delete":
        return run.uid
    return "several"


def _may_go(body: KubernetesObject, run: WantedRun) -> bool:
    """Return whether the claim may be deleted because no other TaskRun has asked to keep it. A
    `Keep` by this TaskRun itself does not count, because it now says `Delete`."""
    kept_for = annotations_of(body).get(manifests.KEPT_FOR)
    return labels_of(body).get(manifests.RECLAIM_LABEL) == "Delete" or kept_for == run.uid


def _going(name: str) -> Obstacle:
    return Obstacle(
        "ClaimPending",
        f"the claim {name} is being deleted or does not exist yet; perdure checks again",
    )
