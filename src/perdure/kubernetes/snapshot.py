"""Jobs and pods from the watch, reduced to the facts on which the operator decides. Pure.

There may be thousands of objects, so only a few hundred bytes of each are kept. Text that
containers, kubelets or users wrote is untrusted. It is only compared, counted, or displayed after
`status.safe_line` has cleaned it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.kubernetes.objects import KubernetesObject, is_being_deleted, labels_of
from perdure.kubernetes.status import moment
from perdure.kubernetes.wanted import GROUP, KIND

UID_LABEL, ATTEMPT_LABEL = f"{GROUP}/taskrun-uid", f"{GROUP}/attempt"
RESULT_BYTES = 4096

NamedPart = dict[str, Any]
"""An entry of a list in a pod whose entries have names, such as a volume or the status of a
container."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a container ended."""

    code: int | None = None
    reason: str = ""
    message: str = ""


class PodSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about one pod of an attempt."""

    name: str
    uid: str
    run: str
    """Uid of the pod's TaskRun."""
    attempt: int
    namespace: str = ""
    version: str = ""
    owner: str = ""
    """Uid of the Job that owns the pod; empty if no Job does."""
    node: str = ""
    claim: str = ""
    phase: str = ""
    reason: str = ""
    message: str = ""
    created: int = 0
    deleted: int = 0
    """End of the deleted pod's grace period, in milliseconds since 1970; 0 if the pod was not
    deleted."""
    gone: bool = False
    """Whether the pod no longer exists. The other fields then have their last known values."""
    disruption: str = ""
    """Reason of the pod's condition DisruptionTarget (the pod was evicted or preempted, or its node
    is lost); empty if the pod has no such condition."""
    unscheduled: str = ""
    """Reason why the scheduler found no node for the pod; empty if it found one."""
    waiting: str = ""
    waiting_message: str = ""
    started: bool = False
    """Whether the agent's container of this pod has run at least once."""
    ended: Ended | None = None

    @property
    def terminal(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def live(self) -> bool:
        """Return whether a container of the pod may still be running."""
        return not self.gone and not self.terminal


class JobSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about the Job of an attempt."""

    name: str
    uid: str
    run: str
    """Uid of the Job's TaskRun."""
    attempt: int
    namespace: str = ""
    version: str = ""
    created: int = 0
    deleting: bool = False
    suspended: bool = False
    complete: bool = False
    failed: str = ""
    """Reason of the Job's condition Failed; empty if the Job has not failed."""
    message: str = ""

    @property
    def finished(self) -> bool:
        return self.complete or bool(self.failed)


class SessionAsked(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation that was found in a pod's log at the last reading, and the time of the next
    reading."""

    id: str = ""
    """Id of the conversation that the log names; empty if the log names none yet."""
    again: int
    """Time at which the log is read again if it names no conversation yet, in milliseconds since
    1970."""
    wait: int
    """Delay between the last reading of the log and the next one, in milliseconds."""


def pod_seen(body: KubernetesObject, gone: bool = False) -> PodSeen | None:
    """Return the facts about a pod; None if it has no labels of perdure. `gone` means that the pod
    was deleted."""
    meta, status = body["metadata"], body.get("status") or {}
    run, attempt = _whose(body)
    if not run:
        return None
    conditions = {str(each.get("type")): each for each in status.get("conditions") or ()}
    container = _named(status.get("containerStatuses"), "perdure")
    state = container.get("state") or {}
    over = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    waiting, waiting_message = _waiting(body, container)
    kind, owner = controller(body)
    disruption = conditions.get("DisruptionTarget", {})
    scheduled = conditions.get("PodScheduled", {})
    return PodSeen(
        name=meta["name"],
        uid=meta.get("uid", ""),
        run=run,
        attempt=attempt,
        namespace=sys.intern(meta.get("namespace", "")),
        version=meta.get("resourceVersion", ""),
        owner=owner if kind == "Job" else "",
        claim=_claim(body),
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
        waiting=waiting,
        waiting_message=waiting_message,
        started=bool(over or state.get("running") or container.get("started")),
        ended=None
        if not over
        else Ended(
            code=over.get("exitCode"),
            reason=over.get("reason") or "",
            message=str(over.get("message") or "")[:RESULT_BYTES],
        ),
    )


def _waiting(body: KubernetesObject, container: NamedPart) -> tuple[str, str]:
    """Return the reason why a pod's containers do not run yet, and its message; empty if there is
    none. An init container's reason comes first, because the status of the agent's container then
    only says that the pod is initializing."""
    containers = (body.get("status") or {}).get("initContainerStatuses") or ()
    for each in containers:
        state = (each.get("state") or {}).get("waiting") or {}
        if state.get("reason"):
            return state["reason"], _cut(state.get("message"))
    state = (container.get("state") or {}).get("waiting") or {}
    return state.get("reason") or "", _cut(state.get("message"))


def job_seen(body: KubernetesObject) -> JobSeen | None:
    """Return the facts about a Job; None if no TaskRun owns it."""
    meta, status = body["metadata"], body.get("status") or {}
    run, attempt = _whose(body)
    if not run or controller(body) != (KIND, run):
        return None
    true = {}
    for each in status.get("conditions") or ():
        if each.get("status") == "True":
            true[str(each.get("type"))] = each
    failed = true.get("Failed")
    return JobSeen(
        name=meta["name"],
        uid=meta.get("uid", ""),
        run=run,
        attempt=attempt,
        namespace=sys.intern(meta.get("namespace", "")),
        version=meta.get("resourceVersion", ""),
        created=moment(meta.get("creationTimestamp", "")),
        deleting=is_being_deleted(body),
        suspended=bool((body.get("spec") or {}).get("suspend")),
        complete="Complete" in true,
        failed=(failed.get("reason") or "Failed") if failed else "",
        message=_cut((failed or {}).get("message")),
    )


def controller(body: KubernetesObject) -> tuple[str, str]:
    """Return the kind and the uid of an object's controller, from its owner references. Both are
    empty if it has none."""
    for each in body["metadata"].get("ownerReferences") or ():
        if each.get("controller"):
            return str(each.get("kind", "")), str(each.get("uid", ""))
    return "", ""


def _whose(body: KubernetesObject) -> tuple[str, int]:
    """Return the TaskRun's uid and the attempt's number from an object's labels; `("", 0)` if the
    object does not have perdure's labels."""
    labels = labels_of(body)
    number = labels.get(ATTEMPT_LABEL, "")
    if number.isascii() and number.isdecimal() and len(number) < 8:
        return labels.get(UID_LABEL, ""), int(number)
    return "", 0


def _claim(body: KubernetesObject) -> str:
    """Return the name of the volume claim that a pod mounts at /data; empty if there is none."""
    data = _named((body.get("spec") or {}).get("volumes"), "perdure-data")
    return str((data.get("persistentVolumeClaim") or {}).get("claimName", ""))[:253]


def _named(parts: Sequence[NamedPart] | None, name: str) -> NamedPart:
    """Return the first part with this name; empty if there is none."""
    for each in parts or ():
        if each.get("name") == name:
            return each
    return {}


def _cut(text: object) -> str:
    return str(text or "")[:1000]
