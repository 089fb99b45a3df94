"""Lists of objects are read in pages, each reduced before the next one is requested."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lightkube.config.kubeconfig import KubeConfig

from perdure.kubernetes import api as kinds
from perdure.kubernetes.api import Api, Away
from tests.kubernetes.apiserver import fails
from tests.kubernetes.staging import Stage, play
from tests.servers.kubernetes.cluster import Cluster

NAMES = [f"pod-{number}" for number in range(5)]


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of two objects."""
    monkeypatch.setattr(kinds, "PAGE", 2, raising=False)


def name_of(body: dict[str, Any]) -> str:
    return str(body["metadata"]["name"])


async def names(stage: Stage) -> list[str]:
    """Return the names of all pods, as a client reads them."""
    api = Api(stage.config())
    try:
        return [name_of(body) for body in await api.items(kinds.POD, "default")]
    finally:
        await api.close()


def make_pods(stage: Stage) -> None:
    for name in NAMES:
        stage.server.add("pods", {"metadata": {"name": name}})


def test_a_list_is_read_in_pages() -> None:
    """No answer of the API server has more objects than a page, and every object is read once."""

    async def story(stage: Stage) -> None:
        make_pods(stage)
        assert await names(stage) == NAMES
        assert stage.server.pages == [2, 2, 1]

    play(fails(0), story)


def test_a_page_is_reduced_before_the_next_one_is_requested() -> None:
    """A function makes what the caller keeps. All objects of the earlier pages have passed it when
    a page is requested."""

    async def story(stage: Stage) -> None:
        make_pods(stage)
        kept: list[str] = []
        seen: list[int] = []
        stage.server.listed = lambda: seen.append(len(kept))
        api = Api(stage.config())

        def keep(body: dict[str, Any]) -> int:
            kept.append(name_of(body))
            return len(kept)

        assert await api.reduced(kinds.POD, "default", keep) == [1, 2, 3, 4, 5]
        await api.close()
        assert (kept, seen) == (NAMES, [0, 2, 4])

    play(fails(0), story)


def test_a_list_begins_again_when_its_version_is_gone() -> None:
    """The API server forgets the version of a list between two pages (410). The list begins again,
    with what was added in the meantime, and has no object twice."""

    async def story(stage: Stage) -> None:
        make_pods(stage)

        def forget() -> None:
            if len(stage.server.pages) == 1:
                stage.server.add("pods", {"metadata": {"name": "late"}})
                stage.server.end_watches(expired=True)

        stage.server.listed = forget
        assert await names(stage) == [*NAMES, "late"]
        assert stage.server.pages == [2, 2, 2, 2]

    play(fails(0), story)


def test_a_list_whose_version_is_always_gone_is_tried_later() -> None:
    """After some tries the error is one that passes, as that of an API server that is away."""

    async def story(stage: Stage) -> None:
        make_pods(stage)
        stage.server.listed = lambda: stage.server.end_watches(expired=True)
        with pytest.raises(Away, match="continue"):
            await names(stage)
        assert stage.server.pages == [2] * kinds.TRIES

    play(fails(0), story)


@pytest.mark.kubernetes
def test_a_list_of_the_real_api_server_is_complete(cluster: Cluster, namespace: str) -> None:
    """The pages of the real API server have all objects that fit the labels, each once."""
    at = f"/api/v1/namespaces/{namespace}/configmaps"
    for name in NAMES:
        cluster.api.create(at, {"metadata": {"name": name, "labels": {"of": "this-test"}}})
    cluster.api.create(at, {"metadata": {"name": "other"}})
    config = KubeConfig.from_file(cluster.kubeconfig).get()
    assert config is not None

    async def read() -> list[str]:
        api = Api(config)
        found = await api.reduced(kinds.MAP, namespace, name_of, {"of": "this-test"})
        assert api.counted["list", kinds.MAP] == 3
        await api.close()
        return found

    assert asyncio.run(read()) == NAMES
