"""The operator on a real control plane, with real Jobs and scripted pods: complete lives of
TaskRuns, errors, and kills."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightkube.config.kubeconfig import KubeConfig

from perdure.kubernetes import api as kinds
from perdure.kubernetes.api import Api, Refused
from tests.kubernetes.operating import Operator, Runs
from tests.kubernetes.resource import installed
from tests.servers.kubernetes import faults
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.proxy import Proxy

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def runs(cluster: Cluster, namespace: str) -> Runs:
    installed(cluster)
    return Runs(cluster, namespace)


@pytest.fixture
def operator(cluster: Cluster, runs: Runs, tmp_path: Path) -> Iterator[Operator]:
    with Operator(cluster.kubeconfig, tmp_path / "operator.log", "-n", runs.namespace) as found:
        yield found


def began(runs: Runs, name: str) -> list[dict[str, Any]]:
    """Return the records that the attempts wrote to their conversation. A pod of the test reads
    them from the claim."""
    claim = runs.status(name)["workspace"]["claimName"]
    volume = runs.cluster.api.get(
        f"/api/v1/namespaces/{runs.namespace}/persistentvolumeclaims/{claim}"
    )["spec"]["volumeName"]
    return [
        json.loads(line)
        for line in (runs.cluster.top / "volumes" / volume / "conversation")
        .read_text()
        .splitlines()
    ]


def requests(operator: Operator) -> int:
    found = re.findall(
        r"^perdure_operator_api_requests_total{.*} (\d+)", operator.ask("/metrics")[1], re.MULTILINE
    )
    return sum(map(int, found))


def test_the_life_of_a_taskrun(runs: Runs, operator: Operator):
    """A TaskRun with two failures and a success has three Jobs, one conversation, and fewer than 25
    requests an attempt. Then come an update, a retry and a deletion."""
    before = requests(operator)
    runs.make("fix", "fails 2 0")
    status = runs.phase("fix", "Succeeded", "Failed")
    assert [each["outcome"] for each in status["attempts"]] == ["failed", "failed", "succeeded"]
    assert (
        status["phase"] == "Succeeded"
        and status["receipt"] == "native"
        and status["usage"]["inputTokens"] == 300
    )
    assert len({each["sessionId"] for each in status["attempts"]}) == 1
    assert (requests(operator) - before) / 3 < 25
    assert len(runs.jobs("fix")) == 3
    runs.patch("fix", spec={"prompt": "works saved 0", "contextVersion": 2})
    runs.cluster.until(lambda: runs.status("fix")["attempt"] == 4, "the update begins an attempt")
    status = runs.phase("fix", "Succeeded", "Failed")
    assert status["contextVersion"] == 2 and status["attempts"][-1]["contextVersion"] == 2
    runs.patch("fix", metadata={"annotations": {"perdure.dev/retry": "once"}})
    runs.cluster.until(
        lambda: runs.status("fix")["attempt"] == 5 and runs.status("fix")["phase"] == "Succeeded",
        "one more",
    )
    assert runs.status("fix")["retried"] == "once"
    lines = began(runs, "fix")
    assert [line["attempt"] for line in lines] == [1, 2, 3, 4, 5] and all(
        line["alone"] and not line["again"] for line in lines
    )
    claim = runs.status("fix")["workspace"]["claimName"]
    runs.cluster.api.delete(f"{runs.at}/fix")
    runs.cluster.until(lambda: runs.cluster.api.find(f"{runs.at}/fix") is None, "it is gone")
    assert (
        runs.cluster.api.find(f"/api/v1/namespaces/{runs.namespace}/persistentvolumeclaims/{claim}")
        is not None
    )


def test_a_stop_and_what_keeps_a_taskrun(runs: Runs, operator: Operator):
    """A suspended TaskRun's pod ends properly, and no attempt is used up. If work is not saved, a
    deletion waits until the work is abandoned."""
    runs.make("fix", "hangs 1 0", workspace={"mode": "Claim", "size": "1Gi", "reclaim": "Delete"})
    pod = runs.cluster.until(
        lambda: runs.status("fix").get("attempts", [{}])[-1].get("pod"), "it has a pod"
    )
    runs.cluster.until(
        lambda: "conversation" in str(list((runs.cluster.top / "volumes").rglob("conversation"))),
        f"{pod} is at work",
    )
    runs.patch("fix", spec={"suspend": True})
    status = runs.phase("fix", "Suspended")
    assert status["attempts"][0]["outcome"] == "cancelled"
    runs.patch("fix", spec={"suspend": False})
    assert runs.phase("fix", "Succeeded", "Failed")["phase"] == "Succeeded"
    runs.cluster.api.delete(f"{runs.at}/fix")
    told = runs.cluster.until(lambda: runs.condition("fix", "UnsavedWork"), "the work is not saved")
    assert "perdure.dev/abandon=true" in told["message"]
    runs.patch("fix", metadata={"annotations": {"perdure.dev/abandon": "true"}})
    runs.cluster.until(lambda: runs.cluster.api.find(f"{runs.at}/fix") is None, "it is gone")


def test_a_claim_goes_and_a_copied_pod_stays(runs: Runs, operator: Operator):
    """The API server deletes a claim only in the version that the operator has read, together with
    a TaskRun whose work is saved. A copy of the attempt's pod, with all its labels, is reported by
    name and left alone."""
    cluster, at = runs.cluster, f"/api/v1/namespaces/{runs.namespace}"
    runs.make(
        "fix", "works saved 0", workspace={"mode": "Claim", "size": "1Gi", "reclaim": "Delete"}
    )
    status = runs.phase("fix", "Succeeded", "Failed")
    claim = status["workspace"]["claimName"]
    pod = cluster.api.get(f"{at}/pods/{status['attempts'][0]['pod']}")
    labels = {
        name: word for name, word in pod["metadata"]["labels"].items() if "perdure.dev" in name
    }
    container = {
        "name": "perdure",
        "image": pod["spec"]["containers"][0]["image"],
        "command": ["/nothing"],
    }
    spec = {"containers": [container], "schedulerName": "nobody"}
    cluster.api.create(f"{at}/pods", {"metadata": {"name": "copy", "labels": labels}, "spec": spec})
    assert (
        "copy"
        in cluster.until(lambda: runs.condition("fix", "Foreign"), "the copy is told")["message"]
    )
    cluster.api.delete(f"{runs.at}/fix")
    cluster.until(lambda: cluster.api.find(f"{runs.at}/fix") is None, "it is gone")
    cluster.until(
        lambda: cluster.api.find(f"{at}/persistentvolumeclaims/{claim}") is None,
        "and its claim with it",
    )
    assert cluster.api.find(f"{at}/pods/copy") is not None


def test_only_what_was_looked_at_is_deleted(cluster: Cluster, namespace: str):
    """The operator names uid and version of an object that it deletes. If they have changed, the
    API server refuses the deletion."""
    at = f"/api/v1/namespaces/{namespace}/configmaps"
    meta = cluster.api.create(at, {"metadata": {"name": "one"}})["metadata"]
    config = KubeConfig.from_file(cluster.kubeconfig).get()
    assert config is not None

    async def ask() -> None:
        api = Api(config)
        for uid, version in ((str(uuid.uuid4()), ""), (meta["uid"], "1")):
            with pytest.raises(Refused) as refused:
                await api.delete(kinds.MAP, namespace, "one", uid=uid, version=version)
            assert refused.value.code == 409
        assert cluster.api.find(f"{at}/one") is not None
        await api.delete(
            kinds.MAP, namespace, "one", uid=meta["uid"], version=meta["resourceVersion"]
        )
        await api.delete(kinds.MAP, namespace, "one", uid=meta["uid"])
        await api.close()

    asyncio.run(ask())
    assert cluster.api.find(f"{at}/one") is None


def test_what_is_missing_is_a_condition_and_has_an_end(
    cluster: Cluster, runs: Runs, tmp_path: Path
):
    """For a missing image, Secret or ConfigMap a condition says what to do. If the object appears,
    it is used; if it does not, a person is needed after some time. For a quota there is no such
    limit."""
    api, at = cluster.api, f"/api/v1/namespaces/{runs.namespace}"
    with Operator(cluster.kubeconfig, tmp_path / "log", "-n", runs.namespace, "--patience", "40s"):
        runs.make("image", pod={"image": "nowhere/nothing:1"})
        runs.make("secret", credentialsSecretRef={"name": "keys"})
        runs.make("words", None, promptFrom={"configMapKeyRef": {"name": "words", "key": "text"}})
        for name, reason in (
            ("words", "ConfigMapMissing"),
            ("image", "ImagePullFailed"),
            ("secret", "SecretMissing"),
        ):
            cluster.until(
                lambda n=name, r=reason: (runs.condition(n, "Waiting") or {}).get("reason") == r,
                f"{name} waits: {reason}",
            )
        words = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "words"},
            "data": {"text": "works 0"},
        }
        api.create(f"{at}/configmaps", words)
        assert runs.phase("words", "Succeeded", "Failed")["phase"] == "Succeeded"
        status = runs.phase("image", "Failed")
        assert status["attempts"][0]["outcome"] == "config_error" and runs.condition(
            "image", "NeedsPerson"
        )
        cluster.until(lambda: not runs.jobs("image"), "its Job is taken away")
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none"},
            "spec": {"hard": {"pods": "0"}},
        }
        api.create(f"{at}/resourcequotas", quota)
        cluster.until(
            lambda: "hard" in (api.get(f"{at}/resourcequotas/none").get("status") or {}),
            "the quota holds",
        )
        runs.make("quota")
        cluster.until(
            lambda: (runs.condition("quota", "Waiting") or {}).get("reason") == "QuotaExceeded",
            "the quota is told",
        )
        assert runs.phase("quota", "Queued")["attempt"] == 1
        api.delete(f"{at}/resourcequotas/none")
        assert runs.phase("quota", "Succeeded", "Failed")["phase"] == "Succeeded"


def test_instructions_of_a_secret_are_read_by_the_pod_alone(runs: Runs, operator: Operator):
    """The operator waits for the Secret, then for its key. No object that the operator makes has
    the Secret's content."""
    api, at = runs.cluster.api, f"/api/v1/namespaces/{runs.namespace}"
    runs.make("fix", None, promptFrom={"secretKeyRef": {"name": "words", "key": "text"}})

    def missed(words: str) -> bool:
        held = runs.condition("fix", "Waiting") or {}
        return held.get("reason") == "SecretMissing" and words in held["message"]

    runs.cluster.until(lambda: missed('"words" not found'), "the Secret is missed")
    api.create(f"{at}/secrets", {"metadata": {"name": "words"}, "stringData": {"other": "works 0"}})
    runs.cluster.until(lambda: missed("key: text"), "its key is missed")
    api.patch(f"{at}/secrets/words", {"stringData": {"text": "works 0.0078125"}})
    assert runs.phase("fix", "Succeeded", "Failed")["phase"] == "Succeeded"
    assert [each["version"] for each in runs.status("fix")["instructionsFrom"]] == [1]
    assert "0078125" not in str(
        [api.items(f"{at}/{kind}") for kind in ("configmaps", "pods", "events")]
    )


def test_an_eviction_costs_nothing(runs: Runs, operator: Operator):
    """The pod is evicted once and killed once. Both are disruptions of the cluster, and do not use
    up the only allowed attempt."""
    runs.make("fix", "hangs 2 0", policy={"attempts": 1})
    for number, end in ((1, "evict"), (2, "kill")):
        record = runs.cluster.until(
            lambda n=number: (
                (every := runs.status("fix").get("attempts", []))[n - 1 :]
                and every[n - 1].get("pod")
                and every[n - 1]
            ),
            f"attempt {number}",
        )
        path = f"/api/v1/namespaces/{runs.namespace}/pods/{record['pod']}"
        pod = runs.cluster.until(
            lambda p=path: (
                (found := runs.cluster.api.get(p))
                and found["status"]["phase"] == "Running"
                and found
            ),
            "it is at work",
        )
        runs.cluster.until(
            lambda n=number: len(began(runs, "fix")) == n, "it has written that it began"
        )
        if end == "evict":
            faults.evict(runs.cluster, runs.namespace, record["pod"])
        else:
            faults.processes(runs.cluster, pod)[0].kill()
    status = runs.phase("fix", "Succeeded", "Failed")
    assert [(each["outcome"], each.get("infrastructure", False)) for each in status["attempts"]] == [
        ("lost", True), ("lost", True), ("succeeded", False),
    ]  # fmt: skip


def test_trouble_on_the_way_to_the_api_server(cluster: Cluster, runs: Runs, tmp_path: Path):
    """409, 500 and 429, lost answers, watches that end, expire or go silent, and an API server that
    is down: in spite of these, nothing is missed or done twice."""
    config = json.loads(cluster.kubeconfig.read_text())
    by_way = tmp_path / "by-way"
    seen: set[tuple[str, str, object]] = set()

    def each_once(method: str, path: str) -> int | str | None:
        for fault in (409, 500, 429, "lose", "cut"):
            if method in ("POST", "PATCH") and (method, path, fault) not in seen:
                seen.add((method, path, fault))
                return fault
        return None

    with Proxy(cluster) as way:
        config["clusters"][0]["cluster"]["server"] = way.url
        by_way.write_text(json.dumps(config))
        with Operator(by_way, tmp_path / "log", "-n", runs.namespace, "--deaf", "5s") as operator:
            way.fault = each_once
            runs.make("one", "fails 1 0")
            assert runs.phase("one", "Succeeded", "Failed")["phase"] == "Succeeded"
            way.fault = None
            way.expire()
            runs.make("two")
            runs.phase("two", "Succeeded")
            way.fault = lambda method, path: "cut"
            way.cut()
            runs.make("three")
            cluster.until(lambda: operator.ask("/healthz")[0] == 503, "the silence is told")
            way.fault = None
            runs.phase("three", "Succeeded")
            way.silence()
            runs.make("four")
            runs.phase("four", "Succeeded")
            for name in ("one", "two", "three", "four"):
                lines = began(runs, name)
                assert [line["attempt"] for line in lines] == list(
                    range(1, len(lines) + 1)
                ) and not any(line["again"] for line in lines)
                assert len(lines) == (2 if name == "one" else 1)


def test_two_operators_that_are_killed_all_the_time(cluster: Cluster, runs: Runs, tmp_path: Path):
    """Two operators run at once, and one of them is killed again and again. Each attempt has one
    Job, one start and one outcome."""
    dice = random.Random(7)
    names = [f"run-{number}" for number in range(4)]
    with (
        Operator(cluster.kubeconfig, tmp_path / "a.log", "-n", runs.namespace) as first,
        Operator(cluster.kubeconfig, tmp_path / "b.log", "-n", runs.namespace),
    ):
        for name in names:
            runs.make(name, "fails 2 0")
        for _ in range(5):
            time.sleep(dice.random())  # any moment will do
            first.kill()
            first.start()
        for name in names:
            assert runs.phase(name, "Succeeded", "Failed")["phase"] == "Succeeded"
            lines = began(runs, name)
            assert [line["attempt"] for line in lines] == [1, 2, 3] and all(
                line["alone"] and not line["again"] for line in lines
            )
            assert [each["outcome"] for each in runs.status(name)["attempts"]] == [
                "failed",
                "failed",
                "succeeded",
            ]
            assert len(runs.jobs(name)) == 3


def test_it_leaves_in_good_order_and_says_why_it_cannot_begin(
    cluster: Cluster, runs: Runs, operator: Operator, tmp_path: Path
):
    """After SIGTERM the operator exits with code 0. Without rights or without a cluster, one
    sentence says what is missing."""
    assert operator.end() == 0
    account = cluster.account(runs.namespace, "nobody")
    nowhere = tmp_path / "nowhere"
    nowhere.write_text(
        cluster.kubeconfig.read_text().replace(cluster.access.server, "https://127.0.0.1:9")
    )
    for config, words in (
        (account, "no permission to list taskruns in namespace"),
        (nowhere, "does not answer"),
        (tmp_path / "none", "no cluster"),
    ):
        command = [
            sys.executable,
            "-m",
            "perdure",
            "operator",
            "-n",
            runs.namespace,
            "--image",
            "x",
            "--port",
            "0",
        ]
        ran = subprocess.run(
            command,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KUBECONFIG": str(config)},
            capture_output=True,
            text=True,
        )
        assert ran.returncode in (1, 2) and words in ran.stderr and "Traceback" not in ran.stderr, (
            ran.stderr
        )
