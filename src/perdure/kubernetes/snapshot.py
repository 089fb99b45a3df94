"""Jobs and pods as the watch shows them, cut down to what the operator decides by. Pure.

Of a thousand objects it keeps a few hundred bytes each. What containers, kubelets and users wrote
into them is hostile: it is only ever compared, counted, or shown after `wanted.said`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.kubernetes.status import moment
from perdure.kubernetes.wanted import GROUP, KIND

UID_LABEL, ATTEMPT_LABEL = f"{GROUP}/taskrun-uid", f"{GROUP}/attempt"
RESULT_BYTES = 4096


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a container ended."""

    code: int | None = None
    reason: str = ""
    message: str = ""


class PodSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A pod of an attempt."""

    name: str
    uid: str
    run: str
    """The TaskRun's uid."""
    attempt: int
    version: str = ""
    owner: str = ""
    """The uid of the Job that it is a pod of."""
    node: str = ""
    claim: str = ""
    phase: str = ""
    reason: str = ""
    message: str = ""
    created: int = 0
    deleted: int = 0
    """When it has to be gone (ms); 0: nobody wants it to go."""
    gone: bool = False
    """The object is deleted: this is what was seen of it last."""
    disruption: str = ""
    """The reason of its condition DisruptionTarget: it was evicted, preempted, or lost its node."""
    unscheduled: str = ""
    """Why no node was found for it."""
    waiting: str = ""
    waiting_message: str = ""
    started: bool = False
    """Its container was at work at least once."""
    ended: Ended | None = None

    @property
    def terminal(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def live(self) -> bool:
        """Something of it may be at work, as far as anybody can tell."""
        return not self.gone and not self.terminal


class JobSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The Job of an attempt."""

    name: str
    uid: str
    run: str
    attempt: int
    version: str = ""
    created: int = 0
    deleting: bool = False
    suspended: bool = False
    complete: bool = False
    failed: str = ""
    """The reason of its condition Failed."""
    message: str = ""

    @property
    def finished(self) -> bool:
        return self.complete or bool(self.failed)


def pod_seen(body: dict[str, Any], gone: bool = False) -> PodSeen | None:
    """A pod, where it is one of ours."""
    meta, status = body["metadata"], body.get("status") or {}
    run, attempt = _whose(meta)
    if not run:
        return None
    conditions = {str(each.get("type")): each for each in status.get("conditions") or ()}
    container: dict[str, Any] = next(
        (each for each in status.get("containerStatuses") or () if each.get("name") == "perdure"),
        {},
    )
    state = container.get("state") or {}
    over = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    held = state.get("waiting") or {}
    kind, owner = controller(meta)
    disruption = conditions.get("DisruptionTarget", {})
    scheduled = conditions.get("PodScheduled", {})
    return PodSeen(
        name=meta["name"],
        uid=meta.get("uid", ""),
        run=run,
        attempt=attempt,
        version=meta.get("resourceVersion", ""),
        owner=owner if kind == "Job" else "",
        claim=_claim(body.get("spec") or {}),
        node=(body.get("spec") or {}).get("nodeName") or "",
        phase=status.get("phase") or "",
        reason=status.get("reason") or "",
        message=_cut(status.get("message")),
        created=moment(meta.get("creationTimestamp", "")),
        deleted=moment(meta.get("deletionTimestamp") or ""),
        gone=gone,
        disruption=(disruption.get("reason") or "DisruptionTarget")
        if disruption.get("status") == "True"
        else "",
        unscheduled=(_cut(scheduled.get("message")) or "Unschedulable")
        if scheduled.get("status") == "False"
        else "",
        waiting=held.get("reason") or "",
        waiting_message=_cut(held.get("message")),
        started=bool(over or state.get("running") or container.get("started")),
        ended=None
        if not over
        else Ended(
            code=over.get("exitCode"),
            reason=over.get("reason") or "",
            message=str(over.get("message") or "")[:RESULT_BYTES],
        ),
    )


def job_seen(body: dict[str, Any]) -> JobSeen | None:
    """A Job, where it is one of ours: made for a TaskRun, which owns it."""
    meta, status = body["metadata"], body.get("status") or {}
    run, attempt = _whose(meta)
    if not run or controller(meta) != (KIND, run):
        return None
    true = {
        str(each.get("type")): each
        for each in status.get("conditions") or ()
        if each.get("status") == "True"
    }
    failed = true.get("Failed")
    return JobSeen(
        name=meta["name"],
        uid=meta.get("uid", ""),
        run=run,
        attempt=attempt,
        version=meta.get("resourceVersion", ""),
        created=moment(meta.get("creationTimestamp", "")),
        deleting=bool(meta.get("deletionTimestamp")),
        suspended=bool((body.get("spec") or {}).get("suspend")),
        complete="Complete" in true,
        failed=(failed.get("reason") or "Failed") if failed else "",
        message=_cut((failed or {}).get("message")),
    )


def controller(meta: dict[str, Any]) -> tuple[str, str]:
    """Kind and uid of what made an object, by its owner references; empty where it was made by
    itself."""
    found = (each for each in meta.get("ownerReferences") or () if each.get("controller"))
    return next(((str(each.get("kind", "")), str(each.get("uid", ""))) for each in found), ("", ""))


def _whose(meta: dict[str, Any]) -> tuple[str, int]:
    """The TaskRun's uid and the attempt that an object is labelled with; empty where it is not
    ours."""
    labels = meta.get("labels") or {}
    number = labels.get(ATTEMPT_LABEL, "")
    return (
        (labels.get(UID_LABEL, ""), int(number))
        if number.isascii() and number.isdecimal() and len(number) < 8
        else ("", 0)
    )


def _claim(spec: dict[str, Any]) -> str:
    """The claim that lies at /data; empty where none does."""
    data: dict[str, Any] = next(
        (each for each in spec.get("volumes") or () if each.get("name") == "perdure-data"), {}
    )
    return str((data.get("persistentVolumeClaim") or {}).get("claimName", ""))[:253]


def _cut(text: Any) -> str:
    return str(text or "")[:1000]
