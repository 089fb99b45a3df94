"""A faulty connection to the API server: the chosen faults happen, and no others."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx2
import pytest

from tests.servers.kubernetes.api import Access, Api, Refused
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.proxy import Proxy

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    with Proxy(cluster) as made:
        yield made


@pytest.fixture
def api(proxy: Proxy, cluster: Cluster) -> Iterator[Api]:
    """Make a client that reaches the API server through the proxy."""
    made = Api(Access(proxy.url, cluster.access.ca_file, cluster.access.token))
    yield made
    made.close()


def test_requests_are_passed_on_refused_and_lost(proxy: Proxy, api: Api, namespace: str) -> None:
    """A request that the proxy refuses or cuts is not carried out. One whose answer is lost is
    carried out. All others pass, and every request is counted."""
    place = f"/api/v1/namespaces/{namespace}/configmaps"
    heard: list[tuple[str, str]] = []
    proxy.on_request = lambda method, path, when: heard.append((method, when))
    api.create(place, {"metadata": {"name": "a"}})
    assert heard == [("POST", "before"), ("POST", "after")] and proxy.count == 1
    proxy.fault = lambda method, path: 409 if method == "POST" else None
    with pytest.raises(Refused) as refused:
        api.create(place, {"metadata": {"name": "b"}})
    assert (refused.value.status, refused.value.reason) == (409, "Conflict")
    for what in ("cut", "lose"):
        proxy.fault = lambda method, path, what=what: what if method == "POST" else None
        with pytest.raises(httpx2.HTTPError):
            api.create(place, {"metadata": {"name": what}})
    assert proxy.faults == 3
    assert {each["metadata"]["name"] for each in api.items(place)} == {
        "a",
        "lose",
        "kube-root-ca.crt",
    }


def test_a_watch_is_cut_and_falls_silent(
    proxy: Proxy, api: Api, cluster: Cluster, namespace: str
) -> None:
    """After a watch is cut, the client opens it again. A silent watch receives nothing more, but
    new connections receive events."""
    place = f"/api/v1/namespaces/{namespace}/configmaps"
    ended, seen = threading.Event(), []

    def follow() -> None:
        for _, each in api.watch(place, ended):
            seen.append(each["metadata"]["name"])

    threading.Thread(target=follow, daemon=True).start()
    cluster.until(lambda: "kube-root-ca.crt" in seen, "the watch has begun")
    cluster.until(lambda: proxy.cut() > 0, "it is cut")
    cluster.api.create(place, {"metadata": {"name": "after-the-cut"}})
    cluster.until(lambda: "after-the-cut" in seen, "it has begun again")
    cluster.until(lambda: proxy.silence() > 0, "it is silent")
    cluster.api.create(place, {"metadata": {"name": "in-silence"}})
    other = Api(api.access)
    assert "in-silence" in {each["metadata"]["name"] for each in other.items(place)}
    assert "in-silence" not in seen
    other.close()
    ended.set()


def test_a_watch_is_told_that_it_is_too_old(
    proxy: Proxy, api: Api, cluster: Cluster, namespace: str
) -> None:
    """A watch expires, and the new list is refused for a while. Afterwards the client reports
    everything that was added and removed in the meantime."""
    place = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.api.create(place, {"metadata": {"name": "goes"}})
    ended, seen = threading.Event(), []

    def follow() -> None:
        for kind, each in api.watch(place, ended):
            seen.append((kind, each["metadata"]["name"]))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    cluster.until(lambda: ("PUT", "goes") in seen, "the list was told")
    proxy.fault = lambda method, path: None if "watch=" in path else 500
    cluster.until(lambda: proxy.expire() > 0, "the watch expires")
    cluster.until(lambda: proxy.faults >= 3, "it was refused thrice")
    cluster.api.delete(f"{place}/goes")
    cluster.api.create(place, {"metadata": {"name": "comes"}})
    proxy.fault = None
    cluster.until(lambda: {("GONE", "goes"), ("PUT", "comes")} <= set(seen), "both are sent")
    ended.set()
    cluster.until(lambda: proxy.expire() > 0 or not thread.is_alive(), "the watch ends")
    thread.join()
