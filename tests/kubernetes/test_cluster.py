"""The small cluster of the tests: a Job is a real process, and its status is reported as a kubelet
reports it."""

from __future__ import annotations

import pytest

from tests.kubernetes.jobs import (
    AT_WORK,
    LASTING,
    claim,
    ended,
    job,
    mounted,
    pods,
    running,
    terminated,
)
from tests.servers.kubernetes import faults
from tests.servers.kubernetes.cluster import Cluster

pytestmark = pytest.mark.kubernetes


def test_a_job_on_two_nodes_with_one_volume(cluster: Cluster, namespace: str) -> None:
    """A pod on another machine finds the files that an earlier pod wrote to a claimed volume, and
    no other files of that pod."""
    claim(cluster, namespace, "work")
    for number, node in enumerate(("one", "two")):
        script = (
            "cat /shelf/said; echo $NODE >> /shelf/said; ls /tmp; touch /tmp/left; cat "
            "/proc/1/comm; id -u"
        )
        named = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
        job(
            cluster, namespace, f"try-{number}", script, container={**AT_WORK, "env": [named]}, volumes=[mounted("work")],
            nodeSelector={"kubernetes.io/hostname": node}, securityContext={"runAsUser": 10001, "fsGroup": 10001},
        )  # fmt: skip
        assert "Complete" in ended(cluster, namespace, f"try-{number}")
    last = pods(cluster, namespace, "try-1")[0]
    assert last["spec"]["nodeName"] == "two"
    assert cluster.kubectl("logs", "-n", namespace, last["metadata"]["name"]).split() == [
        "one",
        "sh",
        "10001",
    ]


def test_a_volume_of_one_machine(cluster: Cluster, namespace: str) -> None:
    """A volume of the class `local` is on the machine where its first pod ran. The next pod runs
    there too."""
    claim(cluster, namespace, "work", mode="ReadWriteOnce", kind="local")
    for number in range(3):
        job(
            cluster,
            namespace,
            f"try-{number}",
            "echo x >> /shelf/x; cat /shelf/x",
            container=AT_WORK,
            volumes=[mounted("work")],
        )
        assert "Complete" in ended(cluster, namespace, f"try-{number}")
    nodes = {
        pods(cluster, namespace, f"try-{number}")[0]["spec"]["nodeName"] for number in range(3)
    }
    assert len(nodes) == 1
    last = pods(cluster, namespace, "try-2")[0]["metadata"]["name"]
    assert cluster.api.text(f"/api/v1/namespaces/{namespace}/pods/{last}/log") == "x\nx\nx\n"
    (found,) = cluster.machines[nodes.pop()].disk.glob("volumes/*/x")
    assert found.read_text() == "x\nx\nx\n"


def test_exit_code_and_message(cluster: Cluster, namespace: str) -> None:
    """A failed attempt's exit code and the first 4096 bytes of its termination message are in the
    pod's status."""
    job(
        cluster,
        namespace,
        "fails",
        "head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log; exit 75",
    )
    assert ended(cluster, namespace, "fails")["Failed"] == "BackoffLimitExceeded"
    end = terminated(pods(cluster, namespace, "fails")[0])
    assert (end["exitCode"], end["reason"], end["message"]) == (75, "Error", "x" * 4096)


def test_the_log_in_place_of_a_message(cluster: Cluster, namespace: str) -> None:
    """With FallbackToLogsOnError, a container that failed without a message gets the end of its log
    as its message."""
    job(
        cluster,
        namespace,
        "fails",
        "echo so it ended; exit 1",
        container={"terminationMessagePolicy": "FallbackToLogsOnError"},
    )
    ended(cluster, namespace, "fails")
    assert terminated(pods(cluster, namespace, "fails")[0])["message"] == "so it ended\n"


def test_deadline(cluster: Cluster, namespace: str) -> None:
    """At its deadline a pod gets TERM. Its exit code and message are kept, and the reason is
    DeadlineExceeded."""
    script = "trap 'echo saved > /dev/termination-log; exit 75' TERM; while :; do sleep 0.1; done"
    job(cluster, namespace, "slow", script, activeDeadlineSeconds=1)
    assert "Failed" in ended(cluster, namespace, "slow")
    pod = pods(cluster, namespace, "slow")[0]
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")
    assert (terminated(pod)["exitCode"], terminated(pod)["message"]) == (75, "saved\n")


def test_grace_and_then_kill(cluster: Cluster, namespace: str) -> None:
    """A deleted pod that ignores TERM is killed after its grace period, and is removed."""
    job(
        cluster,
        namespace,
        "deaf",
        "trap '' TERM; echo there; while :; do sleep 0.1; done",
        terminationGracePeriodSeconds=1,
    )
    pod = running(cluster, namespace, "deaf", "there")
    inside = faults.processes(cluster, pod)
    cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}")
    assert "Failed" in ended(cluster, namespace, "deaf")
    assert inside and not faults.processes(cluster, pod)


FAILS = {
    "podFailurePolicy": {
        "rules": [
            {
                "action": "FailJob",
                "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
            }
        ],
    }
}


def test_eviction(cluster: Cluster, namespace: str) -> None:
    """An evicted pod gets TERM and its grace period. The Job fails with PodFailurePolicy if its
    policy says so, and makes no second pod."""
    claim(cluster, namespace, "work")
    script = "trap 'echo saved > /shelf/end; exit 75' TERM; echo there; while :; do sleep 0.1; done"
    job(
        cluster, namespace, "moved", script, job=FAILS, container=AT_WORK, volumes=[mounted("work")]
    )
    pod = running(cluster, namespace, "moved", "there")
    faults.evict(cluster, namespace, pod["metadata"]["name"])
    assert ended(cluster, namespace, "moved")["Failed"] == "PodFailurePolicy"
    assert len(pods(cluster, namespace, "moved")) <= 1
    job(cluster, namespace, "looks", "cat /shelf/end", container=AT_WORK, volumes=[mounted("work")])
    assert "Complete" in ended(cluster, namespace, "looks")


def test_lost_node(cluster: Cluster, namespace: str) -> None:
    """When a machine is lost, its processes end. Its pod stays in Terminating until the node is
    declared out of service. Then the Job fails by its policy for disruptions."""
    job(cluster, namespace, "lost", "echo there; sleep infinity", job=FAILS, tolerations=LASTING)
    pod = running(cluster, namespace, "lost", "there")
    machine = cluster.machines[pod["spec"]["nodeName"]]
    machine.kill()
    path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
    cluster.until(
        lambda: "deletionTimestamp" in cluster.api.get(path)["metadata"], "the pod is told to go"
    )
    conditions = cluster.api.get(path)["status"]["conditions"]
    assert [each["reason"] for each in conditions if each["type"] == "DisruptionTarget"] == [
        "DeletionByTaintManager"
    ]
    faults.out_of_service(cluster, machine.name)
    assert ended(cluster, namespace, "lost")["Failed"] == "PodFailurePolicy"


def test_one_pod_per_volume(cluster: Cluster, namespace: str) -> None:
    """The scheduler enforces ReadWriteOncePod: a second pod waits, on any node, until the first has
    ended."""
    claim(cluster, namespace, "work")
    until_told = "echo there; until [ -e /shelf/go ]; do sleep 0.1; done"
    job(
        cluster,
        namespace,
        "first",
        f"{until_told}; echo 1 >> /shelf/order",
        container=AT_WORK,
        volumes=[mounted("work")],
    )
    first = running(cluster, namespace, "first", "there")
    job(
        cluster,
        namespace,
        "second",
        "echo 2 >> /shelf/order; cat /shelf/order",
        container=AT_WORK,
        volumes=[mounted("work")],
    )

    def refused() -> bool:
        return any(
            "ReadWriteOncePod" in each.get("message", "")
            for pod in pods(cluster, namespace, "second")
            for each in pod["status"].get("conditions", ())
            if (each["type"], each["status"]) == ("PodScheduled", "False")
        )

    cluster.until(refused, "the scheduler refuses the second pod")
    (cluster.volume(namespace, "work") / "go").touch()
    assert "Complete" in ended(cluster, namespace, "second")
    assert first["metadata"]["uid"] != pods(cluster, namespace, "second")[0]["metadata"]["uid"]
    second = pods(cluster, namespace, "second")[0]["metadata"]["name"]
    assert cluster.api.text(f"/api/v1/namespaces/{namespace}/pods/{second}/log") == "1\n2\n"


def test_what_was_asked(cluster: Cluster, namespace: str) -> None:
    """The audit log gives the number of an account's requests by verb, resource and client."""
    account = cluster.account(namespace, "counted")
    before = faults.requests(cluster)
    for _ in range(3):
        with pytest.raises(AssertionError, match="forbidden"):
            cluster.kubectl("get", "jobs", "x", kubeconfig=account)
    asked = faults.requests(cluster) - before
    assert asked["get", "jobs", "kubectl"] == 3
