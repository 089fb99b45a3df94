"""Small Jobs for the tests of the cluster itself: a shell in a container, and the state in which it
ended."""

from __future__ import annotations

from typing import Any

from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.images import SHELL

LASTING = [
    {
        "key": f"node.kubernetes.io/{trouble}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 1,
    }
    for trouble in ("not-ready", "unreachable")
]
"""Tolerations by which pods leave a lost node after a second."""


def job(
    cluster: Cluster,
    namespace: str,
    name: str,
    script: str,
    *,
    job: Object | None = None,
    **pod: Any,
) -> None:
    """Return the Job of one attempt, as an object to create. The field `container` of the pod's
    fields is added to the pod's container."""
    container = {
        "name": "c",
        "image": SHELL,
        "command": ["sh", "-c", script],
        **pod.pop("container", {}),
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        **pod,
    }
    body = {
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        **(job or {}),
        "template": {"spec": spec},
    }
    cluster.api.create(
        f"/apis/batch/v1/namespaces/{namespace}/jobs", {"metadata": {"name": name}, "spec": body}
    )


def claim(
    cluster: Cluster,
    namespace: str,
    name: str,
    mode: str = "ReadWriteOncePod",
    kind: str = "network",
) -> None:
    """Create a volume claim, which pods use with `volumes=[mounted(name)]`."""
    spec = {
        "accessModes": [mode],
        "storageClassName": kind,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    cluster.api.create(
        f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
        {"metadata": {"name": name}, "spec": spec},
    )


def mounted(name: str) -> Object:
    return {"name": "work", "persistentVolumeClaim": {"claimName": name}}


AT_WORK = {"volumeMounts": [{"name": "work", "mountPath": "/shelf"}]}


def pods(cluster: Cluster, namespace: str, name: str) -> list[Object]:
    """Return the pods of a Job."""
    return cluster.api.items(
        f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"batch.kubernetes.io/job-name={name}"
    )


def ended(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    """Wait for a Job's end. Return its last conditions, with their reasons."""

    def conditions() -> dict[str, str]:
        found = (
            cluster.api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}")
            .get("status", {})
            .get("conditions", [])
        )
        true = {each["type"]: each.get("reason", "") for each in found if each["status"] == "True"}
        return true if {"Complete", "Failed"} & set(true) else {}

    return dict(cluster.until(conditions, f"job {name} ends"))


def running(cluster: Cluster, namespace: str, name: str, word: str = "") -> Object:
    """Wait until a Job's pod runs and its log contains `word`. Return the pod."""

    def found() -> Object | None:
        for each in pods(cluster, namespace, name):
            said = word and cluster.api.text(
                f"/api/v1/namespaces/{namespace}/pods/{each['metadata']['name']}/log"
            )
            if each["status"]["phase"] == "Running" and (not word or word in said):
                return each
        return None

    return dict(cluster.until(found, f"job {name} runs {word}"))


def terminated(pod: Object) -> Object:
    """Return the state of a pod's container, which must have ended."""
    return dict(pod["status"]["containerStatuses"][0]["state"]["terminated"])
