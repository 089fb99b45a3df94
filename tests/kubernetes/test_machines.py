"""Machines of the tests' cluster: which processes end together, and what a node agent finds when it
is started again."""

from __future__ import annotations

import signal

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


def test_an_agent_that_comes_back(cluster: Cluster, namespace: str) -> None:
    """A container continues to run without its node agent. The next node agent reports a container
    that ended in the meantime, with its message."""
    claim(cluster, namespace, "work")
    script = (
        "echo there; until [ -e /shelf/go ]; do sleep 0.1; done; echo done > /dev/termination-log; "
        "touch /shelf/gone; exit 3"
    )
    job(cluster, namespace, "lasts", script, container=AT_WORK, volumes=[mounted("work")])
    pod = running(cluster, namespace, "lasts", "there")
    machine = cluster.machines[pod["spec"]["nodeName"]]
    before = faults.processes(cluster, pod)
    machine.partition()
    assert before and [each.pid for each in faults.processes(cluster, pod)][:1] == [before[0].pid]
    work = cluster.volume(namespace, "work")
    (work / "go").touch()
    cluster.until((work / "gone").exists, "it ended on its own")
    machine.heal()
    ended(cluster, namespace, "lasts")
    end = terminated(pods(cluster, namespace, "lasts")[0])
    assert (end["exitCode"], end["message"]) == (3, "done\n")


def test_a_cut_off_machine(cluster: Cluster, namespace: str) -> None:
    """While a machine's node agent is silent, its pod continues, even if it is to be deleted. The
    pod gets TERM when the node agent is back."""
    claim(cluster, namespace, "work")
    script = (
        "trap 'echo told >> /shelf/said; exit 0' TERM; echo there; while :; do echo still > "
        "/shelf/alive; sleep 0.1; done"
    )
    job(
        cluster,
        namespace,
        "cut",
        script,
        container=AT_WORK,
        volumes=[mounted("work")],
        tolerations=LASTING,
    )
    pod = running(cluster, namespace, "cut", "there")
    machine = cluster.machines[pod["spec"]["nodeName"]]
    machine.freeze()
    path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
    cluster.until(
        lambda: "deletionTimestamp" in cluster.api.get(path)["metadata"], "the pod is told to go"
    )
    work = cluster.volume(namespace, "work")
    (work / "alive").unlink(missing_ok=True)
    cluster.until((work / "alive").exists, "the pod works on")
    assert not (work / "said").exists()
    machine.thaw()
    cluster.until((work / "said").exists, "the pod hears of it")
    cluster.until(
        lambda: not cluster.api.find(path) or cluster.api.get(path)["status"]["phase"] != "Running",
        "the pod has ended",
    )


def test_a_machine_that_is_switched_on_again(cluster: Cluster, namespace: str) -> None:
    """After a power cut no process of the pod is left. The node reports that it does not know how
    the container ended."""
    job(cluster, namespace, "cut", "echo there; sleep infinity")
    pod = running(cluster, namespace, "cut", "there")
    machine = cluster.machines[pod["spec"]["nodeName"]]
    assert faults.processes(cluster, pod)
    machine.kill()
    machine.start()
    assert "Failed" in ended(cluster, namespace, "cut")
    assert not faults.processes(cluster, pod)
    end = terminated(pods(cluster, namespace, "cut")[0])
    assert (end["exitCode"], end["reason"]) == (137, "ContainerStatusUnknown")


def test_the_first_process_is_killed(cluster: Cluster, namespace: str) -> None:
    """SIGKILL of a pod's PID 1 ends everything in it, with exit code 137."""
    job(cluster, namespace, "shot", "sleep infinity & echo there; wait")
    pod = running(cluster, namespace, "shot", "there")
    inside = faults.processes(cluster, pod)
    assert [each.command for each in inside[1:]] == ["sleep infinity"]
    inside[0].kill()
    ended(cluster, namespace, "shot")
    end = terminated(pods(cluster, namespace, "shot")[0])
    assert (end["exitCode"], end["reason"]) == (137, "Error")
    assert not faults.processes(cluster, pod)


def test_a_process_inside_is_killed(cluster: Cluster, namespace: str) -> None:
    """One process of a pod, such as an agent CLI, can be killed alone. The others see how it ended."""
    job(cluster, namespace, "hurt", "sleep infinity & echo there; wait $!; exit $?")
    pod = running(cluster, namespace, "hurt", "there")
    next(each for each in faults.processes(cluster, pod) if each.command == "sleep infinity").kill(
        signal.SIGKILL
    )
    ended(cluster, namespace, "hurt")
    assert terminated(pods(cluster, namespace, "hurt")[0])["exitCode"] == 137


def test_no_memory_left_on_the_node(cluster: Cluster, namespace: str) -> None:
    """A node that is short of memory ends a pod itself: Failed, Evicted, with the condition
    DisruptionTarget."""
    job(cluster, namespace, "pressed", "echo there; sleep infinity")
    pod = running(cluster, namespace, "pressed", "there")
    faults.press(cluster, namespace, pod["metadata"]["name"])
    ended(cluster, namespace, "pressed")
    status = pods(cluster, namespace, "pressed")[0]["status"]
    disruption = [
        each["reason"] for each in status["conditions"] if each["type"] == "DisruptionTarget"
    ]
    assert (status["phase"], status["reason"], disruption) == (
        "Failed",
        "Evicted",
        ["TerminationByKubelet"],
    )


def test_the_api_server_is_away(cluster: Cluster, namespace: str) -> None:
    """If a pod ends while the API server is down, its end is reported when the server is back."""
    claim(cluster, namespace, "work")
    script = "echo there; until [ -e /shelf/go ]; do sleep 0.1; done; touch /shelf/gone; exit 4"
    job(cluster, namespace, "alone", script, container=AT_WORK, volumes=[mounted("work")])
    running(cluster, namespace, "alone", "there")
    work = cluster.volume(namespace, "work")
    cluster.kill("kube-apiserver")
    (work / "go").touch()
    while not (work / "gone").exists():
        assert cluster.processes["etcd"].poll() is None
    cluster.run("kube-apiserver")
    ended(cluster, namespace, "alone")
    assert terminated(pods(cluster, namespace, "alone")[0])["exitCode"] == 4
