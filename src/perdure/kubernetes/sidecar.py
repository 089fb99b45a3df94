"""Builds the relay's container in an attempt's pod, and its volumes. Pure.

The relay has the Secrets of the repository and of the checkpoint store, which the agent's container
does not mount. It is an init container that keeps running (a native sidecar). It therefore starts
before the agent's container, ends after it, and does not keep the Job from completing.
"""

from __future__ import annotations

from perdure.kubernetes.objects import Container
from perdure.kubernetes.spec import Pod, PodVolume, Spec, VolumeMount
from perdure.kubernetes.transports import transport_of

NAME = "relay"
AT = "/perdure/relay"
"""Directory with the relay's address. The agent's container mounts it read-only."""
ORDER = "/perdure/order"
RIGHTS: dict[str, object] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""`securityContext` of every container in a pod."""
ROOM = {"cpu": "200m", "memory": "256Mi", "ephemeral-storage": "64Mi"}
"""Amounts for the relay's container, both as requests and as limits, so that the pod keeps its QoS
class. An amount is used only if the agent's container sets one for the same resource, because a
quota may then require one of every container."""


def secrets(spec: Spec) -> dict[str, str]:
    """Return the names of the Secrets that the relay mounts, by the name of the directory; empty if
    the pod needs no relay."""
    found = {
        "repository": spec.repository.credentials_secret if spec.repository else "",
        "checkpoints": spec.workspace.checkpoints_secret,
    }
    return {name: secret for name, secret in found.items() if secret}


def secret_volume(name: str, secret: str) -> tuple[PodVolume, VolumeMount]:
    """Return a volume for a Secret, and its mount."""
    volume = {"name": f"perdure-{name}", "secret": {"secretName": secret, "defaultMode": 0o440}}
    mount = {
        "name": f"perdure-{name}",
        "mountPath": f"/perdure/secrets/{name}",
        "readOnly": True,
    }
    return volume, mount


def address_volume(*, read_only: bool) -> tuple[PodVolume, VolumeMount]:
    """Return the volume for the relay's address, and its mount."""
    mount: VolumeMount = {"name": "perdure-relay", "mountPath": AT}
    if read_only:
        mount["readOnly"] = True
    limit = {"sizeLimit": "1Mi"}
    return {"name": "perdure-relay", "emptyDir": limit}, mount


def fetches_by_ssh(spec: Spec) -> bool:
    """Return whether the relay fetches the repository by ssh."""
    return spec.repository is not None and transport_of(spec.repository.url) == "ssh"


def key_volume() -> tuple[PodVolume, VolumeMount]:
    """Return an in-memory volume for the relay's copy of the ssh key, and its mount. A mounted
    Secret is readable by the group, and ssh refuses such a key file if ssh's user owns it."""
    volume = {"name": "perdure-key", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}
    return volume, {"name": "perdure-key", "mountPath": "/tmp"}


def container(spec: Spec, image: str) -> Container:
    """Return the relay's container. It mounts the order, its Secrets and the directory of its
    address, and nothing that an agent can write. The caller adds ConfigMaps of the TaskRun, such as
    certificates."""
    pod = spec.pod
    mounts: list[VolumeMount] = [{"name": "perdure-order", "mountPath": ORDER, "readOnly": True}]
    mounts.append(address_volume(read_only=False)[1])
    mounts += [secret_volume(name, secret)[1] for name, secret in secrets(spec).items()]
    if fetches_by_ssh(spec):
        mounts.append(key_volume()[1])
    found: Container = {
        "name": NAME,
        "image": pod.image or image,
        "command": ["perdure", "work", "--as-relay", AT, "--order", ORDER],
        "restartPolicy": "Always",
        "volumeMounts": mounts,
        "securityContext": RIGHTS,
    }
    if resources := _resources(pod):
        found["resources"] = resources
    if pod.image_pull_policy:
        found["imagePullPolicy"] = pod.image_pull_policy
    return found


def _resources(pod: Pod) -> dict[str, dict[str, str]]:
    found = {}
    for part, amounts in pod.resources.items():
        if part in ("requests", "limits"):
            found[part] = {name: ROOM[name] for name in amounts if name in ROOM}
    return {part: amounts for part, amounts in found.items() if amounts}
