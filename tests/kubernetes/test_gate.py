"""The gate before the API server, and the nodes that only pretend."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.kubernetes.jobs import job, pods, terminated
from tests.servers.kubernetes import faults
from tests.servers.kubernetes.api import Access, Api, Object, Refused
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.gate import Gate, gate
from tests.servers.kubernetes.kwok import End, kwok

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def troubled(cluster: Cluster) -> Iterator[Gate]:
    with gate(cluster) as found:
        yield found


@pytest.fixture
def through(cluster: Cluster, troubled: Gate) -> Iterator[Api]:
    """An administrator's client that goes through the gate."""
    api = Api(Access(f"https://127.0.0.1:{troubled.port}", cluster.access.ca_file, cluster.access.token, "client-under-test/1"))
    yield api
    api.close()


class Watching:
    """A bare watch in a thread, which does nothing to help itself."""

    def __init__(self, api: Api, path: str) -> None:
        self.heard: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, args=(api, path), daemon=True)
        self._thread.start()

    def _listen(self, api: Api, path: str) -> None:
        try:
            with api._client.stream("GET", path, params={"watch": "1"}, timeout=None) as answer:
                for line in answer.iter_lines():
                    self.heard.put(line)
        except httpx2.HTTPError:
            pass
        self.heard.put("END")

    def join(self) -> None:
        self._thread.join()


def configmap(name: str) -> Object:
    return {"metadata": {"name": name}}


def test_a_deaf_watch(cluster: Cluster, namespace: str, troubled: Gate, through: Api) -> None:
    """After `deafen` an old watch hears nothing of what a new one is told, and stays open."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    old = Watching(through, path)
    assert "kube-root-ca.crt" in old.heard.get(timeout=60)
    troubled.deafen()
    cluster.api.create(path, configmap("news"))
    other = Api(Access(f"https://127.0.0.1:{troubled.port}", cluster.access.ca_file, cluster.access.token))
    new = Watching(other, path)
    while '"name":"news"' not in new.heard.get(timeout=60):
        pass
    assert old.heard.empty()
    troubled.close()
    old.join()
    new.join()
    other.close()


def test_answers_and_their_timing(cluster: Cluster, namespace: str, troubled: Gate, through: Api) -> None:
    """A request can be refused before it counts, and after it counted; the one after that passes. All are seen."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    troubled.answer(409, path, method="POST")
    with pytest.raises(Refused) as refused:
        through.create(path, configmap("first"))
    assert (refused.value.status, refused.value.reason) == (409, "Conflict")
    assert cluster.api.find(f"{path}/first") is None
    rule = troubled.answer(500, path, method="POST", after=True)
    with pytest.raises(Refused):
        through.create(path, configmap("second"))
    assert cluster.api.find(f"{path}/second") is not None
    assert rule.left == 0
    assert through.create(path, configmap("third"))["metadata"]["name"] == "third"
    assert troubled.counts()["POST", path] == 3
    assert {each.client for each in troubled.seen} == {"client-under-test"}


def test_watches_end(namespace: str, troubled: Gate, through: Api) -> None:
    """Watches can be ended, and told that they are too old."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for end in (troubled.end_watches, troubled.expire_watches):
        watching = Watching(through, path)
        assert "kube-root-ca.crt" in watching.heard.get(timeout=60)
        end()
        last = [watching.heard.get(timeout=60)]
        while last[-1] != "END":
            last.append(watching.heard.get(timeout=60))
        watching.join()
    assert '"code": 410' in last[0]


def test_a_watch_that_lasts(cluster: Cluster, namespace: str, troubled: Gate, through: Api, tmp_path: Path) -> None:
    """The node agent's own watch goes on after an ended, an expired and a refused one, and tells of what went meanwhile."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.api.create(path, configmap("goes"))
    heard: queue.Queue[tuple[str, str]] = queue.Queue()
    ended = threading.Event()

    def listen() -> None:
        for kind, each in through.watch(path, ended):
            heard.put((kind, each["metadata"]["name"]))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def until(wanted: tuple[str, str]) -> None:
        while heard.get(timeout=60) != wanted:
            pass

    until(("PUT", "goes"))
    troubled.expire_watches()
    cluster.api.create(path, configmap("second"))
    until(("PUT", "second"))
    refusals = troubled.answer(500, path, times=3)
    troubled.end_watches()
    cluster.until(lambda: refusals.left < 3, "it was refused")
    cluster.api.delete(f"{path}/goes")
    until(("GONE", "goes"))
    ended.set()
    troubled.close()
    thread.join()


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
