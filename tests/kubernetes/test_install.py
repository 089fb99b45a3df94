"""The chart, installed by Helm: a Deployment with the operator, under the chart's own account and
rights, completes a task.

The operator's requests to the API server are compared with the rights of its role, which must be
exactly the ones that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from perdure.agents.rehearsal import Rehearsal
from perdure.cli import main
from tests.kubernetes.resource import FILE, installed, place
from tests.kubernetes.test_chart_on_cluster import helm, rendered
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.ports import free_port

pytestmark = pytest.mark.kubernetes

VALUES = {"image": {"repository": "perdure", "tag": "test"}, "rbac": {"aggregate": False}}
"""Values of the chart. Each test has its own port for the operator, because pods share the network
of the host."""
SCRIPT = "by history\nrun echo one > one.txt\n---\nsay It is done.\n---\nsay It is done again.\n"


@pytest.fixture
def operated(cluster: Cluster, namespace: str) -> Iterator[str]:
    """Make a namespace with an installed operator for its TaskRuns."""
    installed(cluster)
    with helm().Config(kubeconfig_path=str(cluster.kubeconfig), namespace=namespace) as config:
        port = {"metrics": {"port": free_port()}}
        config.install(str(FILE.parents[1]), "perdure", {**VALUES, **port})
        available = (
            "get",
            "deployment",
            "perdure",
            "-n",
            namespace,
            "-o",
            "jsonpath={.status.availableReplicas}",
        )
        cluster.until(lambda: cluster.kubectl(*available) == "1", "the operator is ready")
        assert config.test("perdure", timeout=120)["release"]["name"] == "perdure"
        yield namespace
        binding = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/perdure"
        cluster.api.delete(binding)
        with pytest.raises(helm().HelmReleaseError):
            config.test("perdure", timeout=120)
        config.uninstall("perdure")


def test_helm_installs_an_operator_that_works(
    cluster: Cluster, operated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the account that the chart makes, everything works from `helm install` to a finished
    task, an update in the same conversation, and its deletion."""
    with Rehearsal(SCRIPT) as rehearsal:
        keys = [
            f"--from-literal={name}={value}" for name, value in rehearsal.environ("claude").items()
        ]
        cluster.kubectl("create", "secret", "generic", "claude", "-n", operated, *keys)
        words = ("-n", operated, "--kubeconfig", str(cluster.kubeconfig))
        run = (
            "run",
            "--name",
            "fix-cents",
            "--service",
            "shop",
            "--task",
            "118",
            "--credentials",
            "claude",
            "--follow",
        )
        assert (
            main.main(
                ["--cluster", *run, *words, "--permissions", "full", "Fix the rounding of cents"]
            )
            == 0
        ), capsys.readouterr()
        assert (
            main.main(
                ["--cluster", "update", "fix-cents", "Also translate them", "--follow", *words]
            )
            == 0
        ), capsys.readouterr()
        sessions = {request.session for request in rehearsal.requests}
    body = cluster.api.get(f"{place(operated)}/fix-cents")
    status = body["status"]
    assert (status["phase"], status["contextVersion"], status["attempt"], status["receipt"]) == (
        "Succeeded",
        2,
        2,
        "native",
    )
    assert len(sessions) == 1 and [attempt["outcome"] for attempt in status["attempts"]] == [
        "succeeded",
        "succeeded",
    ]
    pods = cluster.api.items(
        f"/api/v1/namespaces/{operated}/pods", labelSelector="app.kubernetes.io/managed-by=perdure"
    )
    assert {pod["spec"]["serviceAccountName"] for pod in pods} == {"perdure-attempt"}
    cluster.kubectl("delete", "ptr", "fix-cents", "-n", operated, "--timeout=60s")
    used = asked(cluster, operated)
    (role,) = (
        each
        for each in yaml.safe_load_all(rendered(VALUES, operated))
        if each and each["kind"] == "Role"
    )
    granted = {
        (verb, resource)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert used - granted == {EVERYBODYS}
    assert granted - used <= SELDOM


EVERYBODYS = ("create", "selfsubjectaccessreviews")
"""A request that the pod of `helm test` makes. The role `system:basic-user` allows it to every
account."""
SELDOM = {
    *(
        ("list", "events"),
        ("get", "configmaps"),
        ("list", "pods"),
        ("list", "jobs"),
        ("get", "jobs"),
        ("delete", "jobs"),
    ),
    *(
        ("get", "persistentvolumeclaims"),
        ("patch", "persistentvolumeclaims"),
        ("delete", "persistentvolumeclaims"),
        ("get", "taskruns"),
        ("update", "taskruns/finalizers"),
        ("delete", "taskruns"),
        ("patch", "taskruns"),
        ("get", "namespaces"),
    ),
}
"""Rights that are needed only for errors, for a stop, for instructions in a ConfigMap, to share or
reclaim a volume, or by a plugin of the API server."""


def asked(cluster: Cluster, namespace: str) -> set[tuple[str, str]]:
    """Return the requests of the operator's account, and whether each was allowed."""
    found = set()
    for line in cluster.plan.audit.read_text().splitlines():
        event: dict[str, Any] = json.loads(line)
        if (
            event.get("user", {}).get("username") == f"system:serviceaccount:{namespace}:perdure"
            and "objectRef" in event
        ):
            thing = event["objectRef"]
            found.add(
                (
                    event["verb"],
                    "/".join(
                        each for each in (thing["resource"], thing.get("subresource", "")) if each
                    ),
                )
            )
    return found
