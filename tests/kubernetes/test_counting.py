"""What is counted of the requests of a client, and the nodes that only pretend."""

from __future__ import annotations

import pytest

from tests.kubernetes.jobs import job, pods, terminated
from tests.servers.kubernetes import faults
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.kwok import End, kwok

pytestmark = pytest.mark.kubernetes


def test_what_was_asked(cluster: Cluster, namespace: str) -> None:
    """The audit log counts the requests of an account by verb, resource and client."""
    account = cluster.account(namespace, "counted")
    before = faults.requests(cluster)
    for _ in range(3):
        with pytest.raises(AssertionError, match="forbidden"):
            cluster.kubectl("get", "jobs", "x", kubeconfig=account)
    asked = faults.requests(cluster) - before
    assert asked["get", "jobs", "kubectl"] == 3


def test_pods_that_only_pretend(cluster: Cluster, namespace: str) -> None:
    """Fifty Jobs at once end on fake nodes, each with a termination message of its own."""
    message = '{"run":"{{ index .metadata.labels "batch.kubernetes.io/job-name" }}","share":"100%"}'
    with kwok(cluster, End(message, exit_code=0, delay_ms=200, jitter_ms=300)):
        for number in range(50):
            job(cluster, namespace, f"many-{number}", "true", nodeSelector={"kwok": "fake"})
        jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        cluster.until(lambda: sum(each["status"].get("succeeded", 0) for each in cluster.api.items(jobs)) == 50, "all have ended")
        end = terminated(pods(cluster, namespace, "many-7")[0])
        assert end["message"] == '{"run":"many-7","share":"100%"}'
