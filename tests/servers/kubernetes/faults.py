"""Faults of clusters, as functions. Faults of one machine are methods of the machine: `kill`,
`partition`, `freeze` (`tests.servers.kubernetes.machine`)."""

from __future__ import annotations

import http.client
import json
import ssl
from collections import Counter
from contextlib import closing

from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.cluster import OUT_OF_SERVICE, Cluster
from tests.servers.kubernetes.machine import Process


def drop_node(cluster: Cluster, name: str) -> None:
    """Delete the Node object, as a cloud does when a machine is gone for good. The control plane
    removes its pods after a while."""
    cluster.api.delete(f"/api/v1/nodes/{name}")


def out_of_service(cluster: Cluster, name: str) -> None:
    """Declare that a machine is off for certain. The control plane removes its pods within 20
    seconds, and other nodes may use their volumes."""
    taints = cluster.api.get(f"/api/v1/nodes/{name}")["spec"].get("taints", [])
    taint = {"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}
    cluster.api.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": [*taints, taint]}})


def cordon(cluster: Cluster, name: str, *, on: bool = True) -> None:
    """Keep new pods from being scheduled to a node, or allow them again with `on=False`. The node's
    pods stay."""
    cluster.api.patch(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": on or None}})


def evict(cluster: Cluster, namespace: str, pod: str, grace: int | None = None) -> None:
    """Delete the pod by the eviction API, as a drain does, with the condition DisruptionTarget."""
    options = {} if grace is None else {"deleteOptions": {"gracePeriodSeconds": grace}}
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
        **options,
    }
    cluster.api.create(f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", body)


def press(cluster: Cluster, namespace: str, pod: str) -> None:
    """Let the node run out of memory and end the pod itself: phase Failed, reason Evicted."""
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    node = cluster.api.get(f"/api/v1/nodes/{found['spec']['nodeName']}")
    port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    trust = ssl.create_default_context(cafile=str(cluster.access.ca_file))
    with closing(
        http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=60)
    ) as connection:
        connection.request("POST", f"/evict/{namespace}/{pod}")
        assert connection.getresponse().status == 204


def processes(cluster: Cluster, pod: Object, container: str = "") -> list[Process]:
    """Return the processes of a pod, its PID 1 first, so that a test can kill them."""
    return cluster.machines[pod["spec"]["nodeName"]].processes(pod["metadata"]["uid"], container)


def requests(cluster: Cluster) -> Counter[tuple[str, str, str]]:
    """Return the number of requests to the API server, by verb, resource (`jobs`, `pods/log`) and
    client (the beginning of its user agent).

    Requests of the tests (`admin`), the nodes and the control plane are not counted. A watch counts
    when it begins and when it ends.
    """
    found: Counter[tuple[str, str, str]] = Counter()
    if not cluster.plan.audit.exists():
        return found
    for line in cluster.plan.audit.read_text().splitlines():
        event = json.loads(line)
        thing = event.get("objectRef", {})
        resource = "/".join(
            each
            for each in (thing.get("resource", event["requestURI"]), thing.get("subresource", ""))
            if each
        )
        found[event["verb"], resource, event.get("userAgent", "").split("/")[0]] += 1
    return found
