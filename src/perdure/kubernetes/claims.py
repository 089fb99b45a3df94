"""The volume claim of a task: created and checked before a pod gets it (`launch`), and deleted with
a TaskRun that asks for that (`reconciler`).

A claim is deleted only with all work on it. Every TaskRun that works on it must say `reclaim:
Delete`. A TaskRun that says `Keep` removes the label `perdure.dev/reclaim: Delete` and records its
uid on the claim. If it says `Delete` later, the claim may be deleted again, unless another TaskRun
has said `Keep`, too. Each of these TaskRuns must have been deleted when its work was saved, and
none may be left. A TaskRun marks the claim as its own before a pod gets it. The claim is deleted
only in the version that was checked, so that a TaskRun that starts to use it in between does not
lose it.
"""

from __future__ import annotations

from typing import Any

from perdure.kubernetes import api as kinds
from perdure.kubernetes import manifests
from perdure.kubernetes.api import Api, Refused
from perdure.kubernetes.memory import ClusterMemory
from perdure.kubernetes.outcomes import Held
from perdure.kubernetes.ownership import is_claim
from perdure.kubernetes.snapshot import UID_LABEL
from perdure.kubernetes.wanted import WantedRun, wanted


async def claimed(api: Api, memory: ClusterMemory, run: WantedRun) -> str | Held:
    """Return the name of the claim in mode Claim. If this TaskRun continues the conversation of
    another one, that one's claim is used; otherwise it is created if needed. Returns an empty
    string in the other modes, and Held if the claim cannot be used.

    Raises Refused.
    """
    if run.spec.workspace.mode != "Claim":
        return ""
    source = run.spec.resume.from_
    if not source or source == run.name:
        try:
            await api.create(kinds.CLAIM, manifests.claim(run))
            return run.claim
        except Refused as error:
            if error.code != 409:
                raise
        return await _marked(api, run, run.claim)
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
        return Held(
            "ClaimPending", f"spec.resume.from names TaskRun {source}, which does not exist"
        )
    if other.spec.workspace.mode != "Claim":
        return Held(
            "ClaimPending",
            f"spec.resume.from names TaskRun {source}, which has no claim of its own",
        )
    return await _marked(api, run, other.status.workspace.claim_name or other.claim)


async def drop(api: Api, run: WantedRun, name: str) -> None:
    """Delete the claim with this TaskRun, unless work of another TaskRun may be on it."""
    body = await api.get(kinds.CLAIM, run.namespace, name)
    if body is None or not is_claim(body) or not _may_go(body, run):
        return
    # Ask the API server instead of the operator's memory, which does not have all TaskRuns yet
    # shortly after the start.
    others = [wanted(each) for each in await api.items(kinds.RUN, run.namespace)]
    if not any(each.uid != run.uid and each.lies_on(name, run.name) for each in others):
        meta = body["metadata"]
        await api.delete(
            kinds.CLAIM, run.namespace, name, uid=meta["uid"], version=meta["resourceVersion"]
        )


async def _marked(api: Api, run: WantedRun, name: str) -> str | Held:
    """Mark an existing claim as used by this TaskRun. Return its name, or Held if it cannot be
    used."""
    body = await api.get(kinds.CLAIM, run.namespace, name)
    if body is None or body["metadata"].get("deletionTimestamp"):
        return _going(name)
    if not is_claim(body):
        what = "that perdure did not make, or that several pods can write to"
        return Held(
            "NameTaken",
            f"there is a PersistentVolumeClaim {name} {what}: move its data away and delete it",
        )
    if _labels(body).get(UID_LABEL) == run.uid:
        return name
    marks: dict[str, str | None] = {**manifests.labels(run)}
    keeps: dict[str, str] = {}
    if run.spec.workspace.reclaim != "Delete":
        alone = _labels(body).get(manifests.RECLAIM_LABEL) == "Delete"
        marks[manifests.RECLAIM_LABEL] = None
        keeps[manifests.KEPT_FOR] = run.uid if alone else "several"
    change = {"metadata": {"labels": marks, "annotations": keeps}}
    try:
        body = await api.patch(kinds.CLAIM, run.namespace, name, change)
    except Refused as error:
        if error.code != 404:
            raise
        return _going(name)
    if body["metadata"].get("deletionTimestamp"):
        return _going(name)
    return name


def _may_go(body: dict[str, Any], run: WantedRun) -> bool:
    """Return whether no TaskRun wants to keep the claim: none has said `Keep`, or only this one
    did, and now says `Delete`."""
    kept_for = (body["metadata"].get("annotations") or {}).get(manifests.KEPT_FOR)
    return _labels(body).get(manifests.RECLAIM_LABEL) == "Delete" or kept_for == run.uid


def _going(name: str) -> Held:
    return Held(
        "ClaimPending",
        f"the claim {name} is being deleted or is not made yet; it is looked for again",
    )


def _labels(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["metadata"].get("labels") or {}
    return found
