"""The first week of a platform team: the chart's values reach the attempts in every namespace, a
node of the operator fails, a namespace is deleted, and old objects are cleaned up.

Every operator has its own port, because pods share the host's network here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.kubernetes.operating import Runs
from tests.kubernetes.place import Place
from tests.kubernetes.resource import FILE, installed
from tests.kubernetes.test_chart_on_cluster import helm
from tests.kubernetes.test_operator_on_cluster import began
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.images import SCRIPTED
from tests.servers.ports import free_port

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

CLAIM = {"mode": "Claim", "size": "1Gi"}
DELETE = {**CLAIM, "reclaim": "Delete"}
FINISHED = 50


@contextmanager
def release(cluster: Cluster, namespace: str, **values: Any) -> Iterator[None]:
    """Install the chart in the namespace, and uninstall it at the end of the block."""
    installed(cluster)
    image = {"repository": "perdure", "tag": "test"}
    known = {"image": image, "rbac": {"aggregate": False}, "metrics": {"port": free_port()}}
    attempts = {"image": SCRIPTED, **values.pop("attempts", {})}
    with helm().Config(kubeconfig_path=str(cluster.kubeconfig), namespace=namespace) as config:
        config.install(str(FILE.parents[1]), "perdure", {**known, "attempts": attempts, **values})
        try:
            yield
        finally:
            with suppress(helm().errors.HelmNotFoundError):  # deleted with its namespace
                config.uninstall("perdure")


def operators(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """Return the operator's pods that are ready."""
    found = cluster.api.items(
        f"/api/v1/namespaces/{namespace}/pods",
        labelSelector="app.kubernetes.io/component=operator",
    )
    return [
        pod
        for pod in found
        if "deletionTimestamp" not in pod["metadata"]
        and any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in pod["status"].get("conditions", [])
        )
    ]


def wait_for_operators(cluster: Cluster, namespace: str, number: int = 1) -> list[dict[str, Any]]:
    return list(
        cluster.until(
            lambda: len(found := operators(cluster, namespace)) >= number and found,
            f"{number} operators are ready",
        )
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_operators_node_is_cut(cluster: Cluster, namespace: str, replicas: int) -> None:
    """The node with the operator and a pod on a healthy node are lost. The next attempt of that
    pod's TaskRun starts, at once if there is another replica, else when the only replica has
    moved."""
    cluster.api.patch("/api/v1/nodes/one", {"spec": {"unschedulable": replicas == 1}})
    # Replicas on one host would use the same port. Without a fixed port for probes, each takes a
    # free one.
    own = {"operator": {"replicas": replicas, "arguments": ["--port=0"]}}
    with release(cluster, namespace, **own):
        probes = json.dumps(
            [
                {"op": "remove", "path": f"/spec/template/spec/containers/0/{name}Probe"}
                for name in ("liveness", "readiness")
            ]
        )
        cluster.kubectl(
            "patch", "deployment", "perdure", "-n", namespace, "--type=json", "-p", probes
        )
        rollout = ("rollout", "status", "deployment/perdure", "-n", namespace, "--timeout=170s")
        cluster.kubectl(*rollout)
        there = cluster.until(
            lambda: (
                {pod["spec"]["nodeName"] for pod in operators(cluster, namespace)}
                == ({"two"} if replicas == 1 else {"one", "two"})
                and operators(cluster, namespace)
            ),
            "the operators are on their nodes",
        )
        assert len(there) >= replicas
        cluster.api.patch("/api/v1/nodes/one", {"spec": {"unschedulable": None}})
        runs = Runs(cluster, namespace)
        runs.make("fix", "hangs 1 0", pod={"nodeSelector": {"kubernetes.io/hostname": "one"}})
        runs.phase("fix", "Running")
        cluster.until(lambda: len(began(runs, "fix")) == 1, "it has written that it began")
        pod = runs.status("fix")["attempts"][0]["pod"]
        cluster.machines["two"].kill()
        try:
            cluster.api.discard(f"/api/v1/namespaces/{namespace}/pods/{pod}", gracePeriodSeconds=0)
            status = runs.phase("fix", "Succeeded", "Failed")
        finally:
            cluster.machines["two"].start()
            cluster.until(cluster.machines["two"].is_ready, "node two is back")
    assert [each["outcome"] for each in status["attempts"]] == ["lost", "succeeded"]


def test_a_namespace_with_its_operator_is_deleted(cluster: Cluster, namespace: str) -> None:
    """A namespace has a TaskRun with unsaved work, a running TaskRun, and the operator. When the
    namespace is deleted, all of them are deleted, and nobody has to remove a finalizer manually."""
    with release(cluster, namespace):
        wait_for_operators(cluster, namespace)
        runs = Runs(cluster, namespace)
        runs.make("done", workspace=DELETE)
        runs.make("kept")
        runs.make("works", "hangs 1 0", workspace=DELETE)
        runs.phase("done", "Succeeded")
        runs.phase("kept", "Succeeded")
        runs.phase("works", "Running")
        finalizers = {
            name: runs.get(name)["metadata"].get("finalizers", [])
            for name in ("done", "kept", "works")
        }
        held = ["perdure.dev/unsaved-work"]
        assert finalizers == {"done": held, "kept": [], "works": held}
        cluster.api.discard(f"/api/v1/namespaces/{namespace}")
        cluster.until(
            lambda: cluster.api.find(f"/api/v1/namespaces/{namespace}") is None,
            "the namespace is gone",
        )


def test_the_charts_values_reach_every_namespace(cluster: Cluster, namespace: str) -> None:
    """The operator serves the whole cluster. Pods in another namespace have the pull Secrets and
    resources of the chart, and the namespace has the account and network policy. A TaskRun's own
    values have precedence."""
    other = cluster.namespace()
    pod = {
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "1", "memory": "64Mi"}},
        "nodeSelector": {"kubernetes.io/hostname": "one"},
        "tolerations": [{"key": "agents", "operator": "Exists"}],
        "priorityClassName": "system-node-critical",
    }
    values = {
        "clusterWide": True,
        "imagePullSecrets": [{"name": "regcred"}],
        "operator": {"readLogs": True},
        "attempts": {"pod": pod, "workspace": {"size": "3Gi"}},
    }
    at = f"/api/v1/namespaces/{other}"
    policies = f"/apis/networking.k8s.io/v1/namespaces/{other}/networkpolicies"
    with release(cluster, namespace, **values):
        wait_for_operators(cluster, namespace)
        runs = Runs(cluster, other)
        own = {"resources": {"requests": {"cpu": "2"}}, "imagePullPolicy": "Never"}
        runs.make("fix", workspace={"mode": "Claim"}, pod=own)
        status = runs.phase("fix", "Succeeded", "Failed")
        spec = cluster.api.get(f"{at}/pods/{status['attempts'][0]['pod']}")["spec"]
        (container,) = spec["containers"]
        assert container["resources"] == {"requests": {"cpu": "2", "memory": "64Mi"}}
        assert container["imagePullPolicy"] == "Never"
        assert spec["imagePullSecrets"] == [{"name": "regcred"}]
        assert spec["nodeSelector"] == pod["nodeSelector"]
        assert pod["tolerations"][0] in spec["tolerations"]
        assert spec["priorityClassName"] == pod["priorityClassName"]
        assert spec["serviceAccountName"] == "perdure-attempt"
        claim = cluster.api.get(f"{at}/persistentvolumeclaims/{status['workspace']['claimName']}")
        assert claim["spec"]["resources"]["requests"]["storage"] == "3Gi"
        policy = cluster.api.get(f"{policies}/perdure-attempts")
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert not policy["spec"].get("ingress")
        selected = policy["spec"]["podSelector"]["matchLabels"].items()
        labels = cluster.api.get(f"{at}/pods/{status['attempts'][0]['pod']}")["metadata"]["labels"]
        assert selected <= labels.items()
        runs.make("named", "hangs 1 0", workspace={"mode": "Claim"}, pod=own)
        named = cluster.until(
            lambda: runs.status("named").get("sessionId") and runs.status("named"),
            "its status names the conversation",
        )
        assert named["phase"] == "Running" and not named["attempts"][0].get("outcome")
    cluster.forget(other)


def test_what_is_finished_and_saved_is_cleaned_up(place: Place) -> None:
    """Fifty TaskRuns end, each with the proof that its work is saved. After their time to live they
    are deleted with their claims. One whose work is saved nowhere else stays and says so, until a
    person keeps its claim."""
    claims = place.of("v1", "persistentvolumeclaims")
    runs = [
        place.scripted(f"run-{number:02}", "works saved 0", workspace=DELETE)
        for number in range(FINISHED)
    ]
    for run in runs:
        assert run.settled()["workspace"]["saved"] is True
    unsaved = place.scripted("unsaved", "works 0", workspace=DELETE, ttlSecondsAfterFinished=1)
    assert "saved" not in unsaved.settled()["workspace"]
    assert len(place.api.items(claims)) == FINISHED + 1
    for run in runs:
        run.patch(spec={"ttlSecondsAfterFinished": 1})
    for run in runs:
        run.gone()
    told = unsaved.until(lambda: unsaved.condition("UnsavedWork"), "it says why it stays")
    assert "time to live" in told["message"]
    left = [unsaved.status()["workspace"]["claimName"]]

    def there() -> list[str]:
        return [each["metadata"]["name"] for each in place.api.items(claims)]

    place.cluster.until(lambda: there() == left, "the claims of the others are gone")
    unsaved.patch(spec={"workspace": {"reclaim": "Keep"}})
    unsaved.gone()
    assert there() == left


def test_a_deletion_that_is_stuck_has_ways_out(place: Place) -> None:
    """A waiting deletion can be ended in three ways: the TaskRun releases the claim that it kept,
    gets a checkpoint store, or is told to keep the claim."""
    claims = place.of("v1", "persistentvolumeclaims")
    first = place.scripted("first", "works saved 0")
    first.settled()
    store = {"checkpoints": place.bucket.url, "checkpointsSecretRef": {"name": "store"}}
    first.patch(spec={"workspace": {"reclaim": "Delete", **store}})
    first.until(lambda: first.body()["metadata"].get("finalizers"), "the change is seen")
    first.delete()
    first.gone()
    place.cluster.until(lambda: not place.api.items(claims), "its claim is gone")
    stuck = place.scripted("stuck", "works 0", workspace=DELETE)
    stuck.settled()
    stuck.delete()
    told = stuck.until(lambda: stuck.condition("UnsavedWork"), "it says why it stays")
    assert '"reclaim":"Keep"' in told["message"]
    stuck.patch(spec={"workspace": {"reclaim": "Keep"}})
    stuck.gone()
    assert len(place.api.items(claims)) == 1
