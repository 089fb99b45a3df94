"""The environment, command and arguments of a container, made from its pod as a kubelet makes them
(kubernetes.io/docs/concepts/workloads/pods)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

from tests.servers.kubernetes.api import Api, Object
from tests.servers.kubernetes.images import USER, Image

REFERENCE = re.compile(r"\$(?:\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")


class Wrong(Exception):
    """Raised if a container cannot be made from its pod's spec. The pod retries until it can be
    made. `reason` is the reason in the pod's status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Sources:
    """ConfigMaps and Secrets of a namespace, as bytes by key."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    def config(self, name: str) -> dict[str, bytes] | None:
        found = self.api.find(f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")
        if found is None:
            return None
        binary = {
            key: base64.b64decode(value) for key, value in found.get("binaryData", {}).items()
        }
        return {key: value.encode() for key, value in found.get("data", {}).items()} | binary

    def secret(self, name: str) -> dict[str, bytes] | None:
        found = self.api.find(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        return (
            None
            if found is None
            else {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
        )


def environ(
    pod: Object, container: Object, image: Image, sources: Sources, address: tuple[str, str]
) -> dict[str, str]:
    """Return all variables of a container. Raise Wrong if a ConfigMap, a Secret or a key is missing
    and not optional."""
    host, port = address
    found = {
        **image.environ,
        "HOSTNAME": pod["metadata"]["name"],
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
    }
    found.setdefault("HOME", "/root" if not user(pod, container, image)[0] else "/home/perdure")
    for each in container.get("envFrom", ()):
        for kind, read in (("configMapRef", sources.config), ("secretRef", sources.secret)):
            if kind in each:
                for key, value in _read(kind.removesuffix("Ref"), each[kind], read).items():
                    found[each.get("prefix", "") + key] = value.decode(errors="replace")
    for each in container.get("env", ()):
        if "valueFrom" in each:
            value = _value(pod, each["valueFrom"], sources)
            if value is not None:
                found[each["name"]] = value
        else:
            found[each["name"]] = expanded(each.get("value", ""), found)
    return found


def command(container: Object, image: Image, environ: dict[str, str]) -> list[str]:
    """Return the command and arguments of a container: the pod's own, or else the image's."""
    entry, rest = container.get("command"), container.get("args")
    first = [expanded(each, environ) for each in entry] if entry else list(image.entrypoint)
    last = (
        [expanded(each, environ) for each in rest] if rest else [] if entry else list(image.command)
    )
    return first + last


def user(pod: Object, container: Object, image: Image) -> tuple[int, int, list[int]]:
    """Return user, group and further groups of a container. Raise Wrong if root is forbidden and
    the container would run as root."""
    both = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
    uid = int(both.get("runAsUser", image.user))
    # The group is the one that the image's /etc/passwd has for the user, as with container
    # runtimes.
    gid = int(both.get("runAsGroup", USER if uid == USER else image.group))
    if both.get("runAsNonRoot") and uid == 0:
        raise Wrong(
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root (container: "
            f"{container['name']})",
        )
    groups = [int(each) for each in both.get("supplementalGroups", ())]
    return uid, gid, groups + ([int(both["fsGroup"])] if "fsGroup" in both else [])


def expanded(text: str, environ: dict[str, str]) -> str:
    """Replace each `$(NAME)` by the variable's value if the variable exists, and each `$$` by one
    dollar."""
    return REFERENCE.sub(
        lambda match: "$" if match[1] is None else environ.get(match[1], match[0]), text
    )


def field(pod: Object, path: str) -> str:
    """Return the value of a fieldRef."""
    spec, metadata = pod["spec"], pod["metadata"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str(metadata.get(match[1], {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return "".join(
            f'{key}="{value}"\n'
            for key, value in sorted(metadata.get(path.split(".")[1], {}).items())
        )
    plain = {
        **{f"metadata.{key}": str(metadata.get(key, "")) for key in ("name", "namespace", "uid")},
        "spec.nodeName": str(spec.get("nodeName", "")),
        "spec.serviceAccountName": str(spec.get("serviceAccountName", "")),
        **dict.fromkeys(
            ("status.podIP", "status.hostIP", "status.podIPs", "status.hostIPs"), "127.0.0.1"
        ),
    }
    if path not in plain:
        raise Wrong("CreateContainerConfigError", f"unsupported fieldPath: {path}")
    return plain[path]


def _value(pod: Object, source: Object, sources: Sources) -> str | None:
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    for kind, read in (("configMapKeyRef", sources.config), ("secretKeyRef", sources.secret)):
        if kind in source:
            wanted = source[kind]
            content = _read(kind.removesuffix("KeyRef"), wanted, read)
            if wanted["key"] in content:
                return content[wanted["key"]].decode(errors="replace")
            if wanted.get("optional"):
                return None
            where = f"{sources.namespace}/{wanted['name']}"
            named = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}[kind]
            raise Wrong(
                "CreateContainerConfigError",
                f"couldn't find key {wanted['key']} in {named} {where}",
            )
    raise Wrong("CreateContainerConfigError", f"this node agent knows no {', '.join(source)}")


def _read(
    kind: str, wanted: Object, read: Callable[[str], dict[str, bytes] | None]
) -> dict[str, Any]:
    found = read(wanted["name"])
    if found is None:
        if wanted.get("optional"):
            return {}
        raise Wrong("CreateContainerConfigError", f'{kind.lower()} "{wanted["name"]}" not found')
    return found
