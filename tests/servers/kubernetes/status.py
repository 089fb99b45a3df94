"""A pod's status from its processes, as a kubelet reports it
(kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.servers.kubernetes.api import Object, now
from tests.servers.kubernetes.probes import Probes
from tests.servers.kubernetes.started import Started, stamp

UNKNOWN = {
    "exitCode": 137,
    "reason": "ContainerStatusUnknown",
    "message": "The container could not be located when the pod was terminated",
}


@dataclass
class Seen:
    """The machine's knowledge about a pod. `reason` says why the pod was ended. `lost` means that
    its containers were on this machine and are gone."""

    starts: dict[str, list[Started]]
    probes: Probes
    began: float = 0.0
    reason: str = ""
    message: str = ""
    disrupted: bool = False
    lost: bool = False
    is_told: bool = False
    waiting: dict[str, tuple[str, str]] = field(default_factory=dict)

    def code(self, name: str) -> int | None:
        """Return the exit code of the container's last start, or None if it was never started or is
        running."""
        if self.lost:
            return 137
        starts = self.starts.get(name)
        if not starts or starts[-1].is_running():
            return None
        return int(starts[-1].state()["terminated"]["exitCode"])

    def has_ended(self, pod: Object) -> bool:
        """Return whether all containers except for the sidecars have ended for good."""
        codes = [self.code(each["name"]) for each in pod["spec"]["containers"]]
        if any(code is None for code in codes):
            return False
        policy = pod["spec"]["restartPolicy"]
        return policy == "Never" or (policy == "OnFailure" and not any(codes))

    def phase(self, pod: Object) -> str:
        spec = pod["spec"]
        names = [each["name"] for each in spec["containers"]]
        codes = [self.code(name) for name in names]
        running = any(starts and starts[-1].is_running() for starts in self.starts.values())
        if running and not all(self.starts.get(name) for name in names):
            return "Pending"
        if running:
            return "Running"
        if (
            self.reason
            or self.lost
            or ("deletionTimestamp" in pod["metadata"] and any(code != 0 for code in codes))
        ):
            return "Failed"
        if spec["restartPolicy"] == "Never" and any(
            self.code(each["name"])
            for each in spec.get("initContainers", ())
            if not is_sidecar(each)
        ):
            return "Failed"
        if any(code is None for code in codes):
            return "Pending"
        again = {"Always": True, "OnFailure": any(codes), "Never": False}[spec["restartPolicy"]]
        if again and "deletionTimestamp" not in pod["metadata"]:
            return "Running"
        return "Failed" if any(codes) else "Succeeded"


def is_sidecar(container: Object) -> bool:
    """Return whether an init container is a sidecar, which keeps running beside the others (KEP
    753)."""
    return bool(container.get("restartPolicy") == "Always")


def status(pod: Object, seen: Seen) -> Object:
    """Return the status to write. It equals the previous status if nothing has changed."""
    spec, phase = pod["spec"], seen.phase(pod)
    initials = spec.get("initContainers", ())
    running = {
        each["name"]: bool(seen.starts.get(each["name"])) and seen.code(each["name"]) is None
        for each in (*initials, *spec["containers"])
    }
    done = {
        each["name"]: running[each["name"]] if is_sidecar(each) else seen.code(each["name"]) == 0
        for each in initials
    }
    initial = [_container(each, seen, ready=done[each["name"]]) for each in initials]
    containers = [
        _container(each, seen, ready=running[each["name"]] and seen.probes.is_ready(each["name"]))
        for each in spec["containers"]
    ]
    initialised = all(each["ready"] for each in initial) or seen.has_ended(pod)
    ready = phase == "Running" and all(each["ready"] for each in containers)
    over = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase, "")
    not_ready = "" if ready else over or "ContainersNotReady"
    conditions = [
        _condition(pod, "PodReadyToStartContainers", not over),
        _condition(
            pod, "Initialized", initialised, "" if initialised else "ContainersNotInitialized"
        ),
        _condition(pod, "ContainersReady", ready, not_ready),
        _condition(pod, "Ready", ready, not_ready),
    ]
    if seen.disrupted:
        conditions.append(_condition(pod, "DisruptionTarget", True, "TerminationByKubelet"))
    here = "127.0.0.1"
    found: Object = {
        "phase": phase,
        "startTime": stamp(seen.began),
        "hostIP": here,
        "hostIPs": [{"ip": here}],
        "podIP": here,
        "podIPs": [{"ip": here}],
        "conditions": conditions,
        "containerStatuses": containers,
        **({"initContainerStatuses": initial} if initial else {}),
        **({"reason": seen.reason, "message": seen.message} if seen.reason else {}),
    }
    return found


def _container(container: Object, seen: Seen, *, ready: bool) -> Object:
    name = container["name"]
    starts = seen.starts.get(name, [])
    state: dict[str, Any]
    if name in seen.waiting:
        reason, message = seen.waiting[name]
        state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    elif starts:
        state = starts[-1].state()
    elif seen.lost:
        state = {"terminated": UNKNOWN}
    else:
        state = {"waiting": {"reason": "PodInitializing" if seen.starts else "ContainerCreating"}}
    ended = starts[-1:] if name in seen.waiting else starts[-2:-1]
    last = {"lastState": ended[0].state()} if ended else {}
    found = {
        "name": name,
        "image": container["image"],
        "imageID": container["image"] if starts else "",
        "state": state,
        **last,
    }
    identity = (
        {"containerID": f"perdure://{starts[-1].place.parents[2].name}-{name}-{len(starts)}"}
        if starts
        else {}
    )
    return {
        **found,
        **identity,
        "ready": ready,
        "started": "running" in state,
        "restartCount": max(0, len(starts) - 1),
    }


def _condition(pod: Object, kind: str, is_true: bool, reason: str = "") -> Object:
    said = "True" if is_true else "False"
    before = next(
        (
            each
            for each in pod["status"].get("conditions", ())
            if each["type"] == kind and each["status"] == said
        ),
        None,
    )
    since = before["lastTransitionTime"] if before and before.get("lastTransitionTime") else now()
    return {
        "type": kind,
        "status": said,
        "lastTransitionTime": since,
        **({"reason": reason} if reason else {}),
    }
