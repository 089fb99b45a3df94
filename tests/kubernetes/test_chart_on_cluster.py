"""The chart as Helm renders it, against Kubernetes' own schemas and a real API server; the
operator's account and its rights."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.resource import FILE, TOP, installed
from tests.servers.kubernetes.api import Access, Api
from tests.servers.kubernetes.cluster import Cluster

pytestmark = pytest.mark.kubernetes

CHART = FILE.parents[1]
MANIFESTS = TOP / "packaging" / "kubernetes" / "perdure.yaml"
RELEASE = "1.36"
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "for all namespaces": {"clusterWide": True},
    "without anything that is optional": {
        "serviceAccount": {"create": False}, "attempts": {"serviceAccount": {"create": False}}, "rbac": {"aggregate": False},
        "networkPolicy": {"enabled": False},
    },
    "with everything": {
        "image": {"repository": "registry.example.com/perdure", "tag": "1", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "operator": {
            "replicas": 2, "arguments": ["--quiet"], "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}], "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "a", "operator": "Exists"}], "affinity": {"nodeAffinity": {}}, "priorityClassName": "high",
            "podLabels": {"a": "b"}, "podAnnotations": {"a": "b"},
        },
        "serviceAccount": {"name": "mine", "annotations": {"a": "b"}},
        "attempts": {
            "repositories": {"httpHosts": ["gitea.forge.svc:3000"], "sshHosts": ["git.example.com"]},
            "image": "agents:1", "serviceAccount": {"name": "agents"}, "ttlSecondsAfterFinished": 0,
            "pod": {
                "imagePullPolicy": "Always", "imagePullSecrets": [{"name": "other"}], "resources": {"limits": {"memory": "4Gi"}},
                "nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "operator": "Exists"}], "priorityClassName": "low",
                "runtimeClassName": "gvisor", "schedulerName": "mine",
            },
            "workspace": {"size": "1Gi", "storageClassName": "fast", "checkpoints": "s3://b/p", "checkpointsSecretRef": {"name": "keys"}},
        },
        "networkPolicy": {
            "apiServer": {"ports": [6443], "cidrs": ["10.0.0.1/32"]}, "metricsFrom": [{"namespaceSelector": {}}],
            "attempts": {"ports": [443, 22], "cidrs": ["0.0.0.0/0"], "except": ["10.0.0.0/8"], "egress": [{"ports": [{"port": 3128}]}]},
        },
        "metrics": {"port": 9000},
    },
}  # fmt: skip


def helm() -> Any:
    """Import Helm's own library. It is imported only here, because `make test` reads this file
    without having the library."""
    import helm_python

    return helm_python


def rendered(values: dict[str, Any], namespace: str = "perdure", hooks: bool = True) -> str:
    with helm().Chart.load(str(CHART)) as chart:
        found = chart.render(values, name="perdure", namespace=namespace)
    return "\n---\n".join(
        text
        for name, text in found.items()
        if name.endswith(".yaml") and text.strip() and (hooks or "helm.sh/hook" not in text)
    )


def objects(text: str) -> Iterator[dict[str, Any]]:
    return (each for each in yaml.safe_load_all(text) if each)


def test_helm_has_no_complaint() -> None:
    """`helm lint` finds no error and no warning."""
    found = helm().lint(str(CHART))
    assert (
        found["errors"] == [] and [each for each in found["messages"] if each["severity"] > 1] == []
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_what_kubernetes_takes(
    cluster: Cluster, namespace: str, variant: str
) -> None:
    """Helm's output passes the published schemas in strict mode, and a dry run of the API
    server."""
    import kubernetes_validate

    for each in objects(rendered(VARIANTS[variant], namespace)):
        kubernetes_validate.validate(each, RELEASE, strict=True)
    # The pod of `helm test` is left out: it is created after the rest, and is refused as long as
    # its account does not exist.
    text = rendered(VARIANTS[variant], namespace, hooks=False)
    said = cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )
    assert len(said.splitlines()) == len(list(objects(text)))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"clusterwide": True}, "clusterwide"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"networkPolicy": {"attempts": {"cidrs": ["everywhere"]}}}, "cidrs"),
        ({"metrics": {"port": 0}}, "port"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], field: str) -> None:
    """Helm's error names a value that is misspelt or impossible."""
    with helm().Chart.load(str(CHART)) as chart, pytest.raises(helm().HelmError, match=field):
        chart.validate_schema(values)


@pytest.mark.parametrize(
    ("values", "operator", "attempts"),
    [
        ({}, "perdure-operator:0.1.0", "perdure:0.1.0"),
        (
            {"image": {"registry": "r.example.com/team", "tag": "1"}},
            "r.example.com/team/perdure-operator:1",
            "r.example.com/team/perdure:1",
        ),
        ({"image": {"repository": "r/one", "tag": "1"}}, "r/one:1", "r/one:1"),
        (
            {"image": {"registry": "r"}, "operator": {"image": "a:1"}, "attempts": {"image": "b"}},
            "a:1",
            "b",
        ),
    ],
)
def test_the_images_of_the_operator_and_of_the_attempts(
    values: dict[str, Any], operator: str, attempts: str
) -> None:
    """The images of operator and attempts have the same registry setting. If only one repository is
    set, as in the first charts, it names one image for both. Each image also has settings of its
    own."""
    found = list(objects(rendered(values)))
    (deployment,) = (each for each in found if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == operator
    assert f"--image={attempts}" in container["args"]
    (pod,) = (each for each in found if each["kind"] == "Pod")
    assert {each["image"] for each in pod["spec"]["containers"]} == {operator}


def test_the_test_may_reach_the_probes_where_policies_hold() -> None:
    """The operator's network policy lets the pod of `helm test` in, even if only some pods may
    scrape the metrics. The Deployment's selector does not match that pod."""
    found = list(objects(rendered({"networkPolicy": {"metricsFrom": [{"podSelector": {}}]}})))
    (pod,) = (each for each in found if each["kind"] == "Pod")
    (deployment,) = (each for each in found if each["kind"] == "Deployment")
    labels = pod["metadata"]["labels"]
    selected = deployment["spec"]["selector"]["matchLabels"]
    assert not selected.items() <= labels.items()
    (policy,) = (
        each["spec"]
        for each in found
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "perdure"
    )
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    peer = policy["ingress"][0]["from"][-1]["podSelector"]["matchLabels"]
    assert peer.items() <= labels.items()
    assert policy["egress"][0]["to"][0]["podSelector"]["matchLabels"] == selected
    (check,) = (each for each in pod["spec"]["containers"] if each["name"] == "operator")
    asked = dict(each.split("=") for each in check["args"][0].removeprefix("--check=").split(","))
    assert asked == selected


def test_the_pod_monitor_selects_the_operator() -> None:
    """The optional PodMonitor has the port and the labels of the Deployment."""
    found = {
        each["kind"]: each
        for each in objects(rendered({"metrics": {"podMonitor": {"enabled": True}}}))
    }
    monitor, pod = found["PodMonitor"]["spec"], found["Deployment"]["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert monitor["podMetricsEndpoints"][0]["port"] in [
        port["name"] for port in pod["spec"]["containers"][0]["ports"]
    ]


def test_the_manifests_are_what_the_chart_gives(cluster: Cluster) -> None:
    """`make manifests` makes exactly this file. The API server accepts it in a namespace with the
    restricted standard."""
    assert runpy.run_path(str(TOP / "packaging" / "manifests.py"))["made"]() == MANIFESTS.read_text(
        encoding="utf-8"
    )
    try:
        said = cluster.kubectl("apply", "--server-side", "--validate=strict", "-f", str(MANIFESTS))
        assert "deployment.apps/perdure serverside-applied" in said and "would violate" not in said
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", str(MANIFESTS))


def may(
    cluster: Cluster, kubeconfig: Path, namespace: str, verb: str, group: str, resource: str
) -> bool:
    """Return whether an account may make a request, according to the API server."""
    token = json.loads(kubeconfig.read_text())["users"][0]["user"]["token"]
    api = Api(Access(cluster.access.server, cluster.access.ca_file, token))
    name, _, below = resource.partition("/")
    what = {
        "namespace": namespace,
        "verb": verb,
        "group": group,
        "resource": name,
        "subresource": below,
    }
    asked = {"spec": {"resourceAttributes": what}}
    try:
        return bool(
            api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asked)["status"][
                "allowed"
            ]
        )
    finally:
        api.close()


FORBIDDEN = [
    *(
        ("get", "", "secrets"),
        ("list", "", "secrets"),
        ("create", "", "secrets"),
        ("create", "", "pods"),
        ("get", "", "pods/exec"),
        ("create", "", "pods/exec"),
    ),
    *(
        ("create", "perdure.dev", "taskruns"),
        ("update", "perdure.dev", "taskruns"),
        ("create", "", "serviceaccounts/token"),
    ),
    *(
        ("get", "", "nodes"),
        ("list", "", "namespaces"),
        ("delete", "", "configmaps"),
        ("create", "apps", "deployments"),
    ),
    *(
        ("create", "rbac.authorization.k8s.io", "roles"),
        ("patch", "rbac.authorization.k8s.io", "rolebindings"),
    ),
]


def test_the_operators_account_may_what_its_role_says_and_no_more(
    cluster: Cluster, namespace: str
) -> None:
    """The operator's account has every right of its role in its namespace, none outside, and no
    right that would give it more. The attempts' account has none."""
    installed(cluster)
    text = rendered({"rbac": {"aggregate": False}}, namespace)
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    operator, attempt = (
        cluster.account(namespace, "perdure"),
        cluster.account(namespace, "perdure-attempt"),
    )
    (role,) = (each for each in objects(text) if each["kind"] == "Role")
    rules = [
        (group, resource, rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]
    granted = [(verb, group, resource) for group, resource, verbs in rules for verb in verbs]
    assert [each for each in granted if not may(cluster, operator, namespace, *each)] == []
    assert [each for each in granted if may(cluster, operator, "default", *each)] == []
    assert [each for each in FORBIDDEN if may(cluster, operator, namespace, *each)] == []
    assert [each for each in granted if may(cluster, attempt, namespace, *each)] == []


def test_people_get_their_rights_with_the_usual_roles(cluster: Cluster, namespace: str) -> None:
    """A user who may edit a namespace may create TaskRuns in it. A user who may view it may see
    them."""
    installed(cluster)
    text = rendered({}, namespace)
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    rights = {}
    for role in ("view", "edit"):
        person = cluster.account(namespace, f"a-{role}")
        cluster.kubectl(
            "create",
            "rolebinding",
            f"a-{role}",
            "-n",
            namespace,
            f"--clusterrole={role}",
            f"--serviceaccount={namespace}:a-{role}",
        )
        cluster.until(
            lambda person=person: may(cluster, person, namespace, "get", "perdure.dev", "taskruns"),
            "the roles are brought together",
        )
        rights[role] = [
            verb
            for verb in ("list", "create", "patch", "delete")
            if may(cluster, person, namespace, verb, "perdure.dev", "taskruns")
        ]
    assert rights == {"view": ["list"], "edit": ["list", "create", "patch", "delete"]}
    cluster.kubectl(
        "delete", "clusterrole", f"perdure-{namespace}-view", f"perdure-{namespace}-edit"
    )
