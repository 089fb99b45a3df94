"""Pods of the tests' cluster: what a container gets, what is refused, and what the pod's status
says."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.kubernetes.jobs import claim, ended, job, mounted, pods, terminated
from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.cluster import KUBECTL, Cluster
from tests.servers.kubernetes.images import PERDURE
from tests.servers.ports import free_port

pytestmark = pytest.mark.kubernetes


def log(cluster: Cluster, namespace: str, name: str) -> str:
    pod = pods(cluster, namespace, name)[0]
    return cluster.api.text(f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/log")


def waits(cluster: Cluster, namespace: str, name: str, reason: str) -> Object:
    """Wait until a Job's container waits for this reason. Return the container's state."""

    def found() -> Object | None:
        for pod in pods(cluster, namespace, name):
            for each in pod["status"].get("containerStatuses", ()):
                if each["state"].get("waiting", {}).get("reason") == reason:
                    return dict(each["state"]["waiting"])
        return None

    return dict(cluster.until(found, f"{name} waits: {reason}"))


def test_perdure_and_its_agents(cluster: Cluster, namespace: str) -> None:
    """perdure's image has perdure and the agent CLIs, for a user who is not root and cannot see the
    rest of the host."""
    script = (
        "set -e; perdure --version; claude --version; codex --version; git --version; id -un; ls "
        "/; test ! -e /opt/perdure/tests"
    )
    job(cluster, namespace, "whole", script, container={"image": PERDURE})
    assert "Complete" in ended(cluster, namespace, "whole"), log(cluster, namespace, "whole")
    said = log(cluster, namespace, "whole")
    assert [
        word in said
        for word in ("perdure 0.", "(Claude Code)", "codex-cli", "git version", "perdure\n")
    ] == [True] * 5
    assert "work\n" not in said and "srv\n" not in said


def test_what_a_container_is_given(cluster: Cluster, namespace: str) -> None:
    """A container gets Secrets and ConfigMaps as files and variables, sub-paths, an emptyDir that
    it shares with the init container, and a read-only root."""
    core = f"/api/v1/namespaces/{namespace}"
    cluster.api.create(
        f"{core}/secrets",
        {"metadata": {"name": "keys"}, "stringData": {"token": "s3", "other": "x"}},
    )
    cluster.api.create(
        f"{core}/configmaps", {"metadata": {"name": "said"}, "data": {"a.txt": "hello"}}
    )
    claim(cluster, namespace, "work")
    env: list[Any] = [
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
        {
            "name": "NONE",
            "valueFrom": {"secretKeyRef": {"name": "keys", "key": "none", "optional": True}},
        },
        {"name": "TASK", "value": "t1"},
        {"name": "BOTH", "value": "$(TASK)-$(KEY)-$$(KEY)-$(MISSING)"},
    ]
    mounts: list[Any] = [
        {"name": "keys", "mountPath": "/keys", "readOnly": True},
        {"name": "said", "mountPath": "/said.txt", "subPath": "a.txt"},
        {"name": "work", "mountPath": "/shelf", "subPathExpr": "service/$(TASK)"},
        {"name": "shared", "mountPath": "/tmp"},
    ]
    volumes: list[Any] = [
        {
            "name": "keys",
            "secret": {
                "secretName": "keys",
                "defaultMode": 0o400,
                "items": [{"key": "token", "path": "in/token"}],
            },
        },
        {"name": "said", "configMap": {"name": "said"}},
        {"name": "shared", "emptyDir": {}},
        mounted("work"),
    ]
    first = {
        "name": "i",
        "image": "shell:test",
        "command": ["sh", "-c", "echo from init > /tmp/first"],
        "volumeMounts": mounts[3:],
    }
    script = """
    echo "$BOTH" ${NONE-unset}; cat /keys/in/token /said.txt /tmp/first; ls /keys; stat -c %a:%g /keys/in/token /shelf
    echo mine > /shelf/mine; touch /x 2>/dev/null || echo read-only; cat /proc/self/status | grep NoNewPrivs
    """
    security = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    job(
        cluster, namespace, "given", script, container={"env": env, "volumeMounts": mounts, "securityContext": security},
        initContainers=[first], volumes=volumes, securityContext={"runAsUser": 10001, "runAsNonRoot": True, "fsGroup": 10001},
    )  # fmt: skip
    assert "Complete" in ended(cluster, namespace, "given"), log(cluster, namespace, "given")
    assert log(cluster, namespace, "given").replace("\t", " ").split("\n")[:-1] == [
        *(
            "t1-s3-$(KEY)-$(MISSING) unset",
            "s3hellofrom init",
            "in",
            "440:10001",
            "2775:10001",
            "read-only",
            "NoNewPrivs: 1",
        ),
    ]
    assert (cluster.volume(namespace, "work") / "service/t1/mine").read_text() == "mine\n"


def test_a_sidecar_runs_beside_the_container(cluster: Cluster, namespace: str) -> None:
    """An init container with the restart policy Always is started first and runs beside the others.
    It is restarted when it ends, and asked to end after the others. The Job completes without
    waiting for it."""
    mount = [{"name": "both", "mountPath": "/both"}]
    waits_for = "trap 'echo asked >> /both/said; exit 0' TERM; while :; do sleep 0.1; done"
    beside = {
        "name": "beside",
        "image": "shell:test",
        "restartPolicy": "Always",
        "command": [
            "sh",
            "-c",
            f"test -e /both/first || {{ touch /both/first; exit 1; }}; touch /both/again; {waits_for}",
        ],
        "volumeMounts": mount,
    }
    last = {**beside, "name": "last", "command": ["sh", "-c", waits_for]}
    job(
        cluster,
        namespace,
        "sidecar",
        "while ! test -e /both/again; do sleep 0.1; done; ls /both; echo main >> /both/said",
        container={"volumeMounts": mount},
        initContainers=[beside, last],
        volumes=[{"name": "both", "persistentVolumeClaim": {"claimName": "kept"}}],
    )
    claim(cluster, namespace, "kept")
    assert "Complete" in ended(cluster, namespace, "sidecar"), log(cluster, namespace, "sidecar")
    assert log(cluster, namespace, "sidecar").split() == ["again", "first"]
    (pod,) = pods(cluster, namespace, "sidecar")
    assert pod["status"]["phase"] == "Succeeded"
    states = {each["name"]: each for each in pod["status"]["initContainerStatuses"]}
    assert states["beside"]["restartCount"] == 1 and "terminated" in states["last"]["state"]
    said = (cluster.volume(namespace, "kept") / "said").read_text().split()
    assert said == ["main", "asked", "asked"]


def test_what_is_missing(cluster: Cluster, namespace: str) -> None:
    """A missing image, a missing Secret, and a container that runs as root although that is
    forbidden are reported with the kubelet's reasons. A Secret that is created later is found."""
    job(cluster, namespace, "pull", "true", container={"image": "registry.example/none:1"})
    key = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "later", "key": "token"}}}
    job(cluster, namespace, "key", "echo $KEY", container={"env": [key]})
    job(cluster, namespace, "root", "true", securityContext={"runAsNonRoot": True})
    volume = {"name": "later", "secret": {"secretName": "later"}}
    job(
        cluster,
        namespace,
        "file",
        "cat /later/token",
        container={"volumeMounts": [{"name": "later", "mountPath": "/later"}]},
        volumes=[volume],
    )
    assert "not found" in waits(cluster, namespace, "pull", "ImagePullBackOff")["message"]
    assert (
        waits(cluster, namespace, "key", "CreateContainerConfigError")["message"]
        == 'secret "later" not found'
    )
    assert (
        "run as root" in waits(cluster, namespace, "root", "CreateContainerConfigError")["message"]
    )
    waits(cluster, namespace, "file", "ContainerCreating")
    events = f"/api/v1/namespaces/{namespace}/events"
    cluster.until(
        lambda: any(each["reason"] == "FailedMount" for each in cluster.api.items(events)),
        "an event says what is missing",
    )
    cluster.api.create(
        f"/api/v1/namespaces/{namespace}/secrets",
        {"metadata": {"name": "later"}, "stringData": {"token": "now"}},
    )
    for name in ("key", "file"):
        assert "Complete" in ended(cluster, namespace, name)
        assert log(cluster, namespace, name).strip() == "now"


def test_no_such_program(cluster: Cluster, namespace: str) -> None:
    """A missing command ends the container with 128 and StartError."""
    job(cluster, namespace, "none", "", container={"command": ["/no/such/program"]})
    ended(cluster, namespace, "none")
    end = terminated(pods(cluster, namespace, "none")[0])
    assert (end["exitCode"], end["reason"]) == (128, "StartError")
    assert "/no/such/program" in end["message"]


def test_too_much_memory(cluster: Cluster, namespace: str) -> None:
    """A container over its memory limit is ended by the kernel: OOMKilled, 137."""
    script = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"
    job(cluster, namespace, "big", script, container={"resources": {"limits": {"memory": "50Mi"}}})
    ended(cluster, namespace, "big")
    end = terminated(pods(cluster, namespace, "big")[0])
    assert (end["exitCode"], end["reason"]) == (137, "OOMKilled")


def test_an_account_in_a_pod_and_outside(cluster: Cluster, namespace: str) -> None:
    """A service account has the rights of its roles and no others, both with the token in its pod
    and with a kubeconfig."""
    account = cluster.account(namespace, "reader")
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]
    cluster.api.create(f"{rbac}/roles", {"metadata": {"name": "reader"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    cluster.api.create(
        f"{rbac}/rolebindings",
        {"metadata": {"name": "reader"}, "subjects": [subject], "roleRef": role},
    )
    cluster.until(
        lambda: (
            "kube-root"
            in cluster.kubectl("get", "configmap", "kube-root-ca.crt", kubeconfig=account)
        ),
        "the role counts",
    )
    with pytest.raises(AssertionError, match="forbidden"):
        cluster.kubectl("get", "secrets", kubeconfig=account)
    script = """python - <<'X'
import lightkube
from lightkube.resources.core_v1 import ConfigMap, Secret
client = lightkube.Client()
print(client.get(ConfigMap, "kube-root-ca.crt").metadata.name)
try:
    client.get(Secret, "none")
except lightkube.ApiError as error:
    print(error.status.code)
X"""
    job(
        cluster,
        namespace,
        "asks",
        script,
        container={"image": PERDURE},
        serviceAccountName="reader",
    )
    ended(cluster, namespace, "asks")
    assert log(cluster, namespace, "asks").split() == ["kube-root-ca.crt", "403"]


def test_a_deployment_that_becomes_ready(cluster: Cluster, namespace: str) -> None:
    """A Deployment's pod is ready when its probe is answered, and is restarted when it ends. Its
    log can be followed."""
    port = free_port()
    server = f"echo here; exec python3 -m http.server --bind 127.0.0.1 {port}"
    probe = {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1}
    container = {
        "name": "c",
        "image": "shell:test",
        "command": ["sh", "-c", server],
        "readinessProbe": probe,
    }
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }
    spec = {"selector": {"matchLabels": {"app": "web"}}, "template": template}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    cluster.api.create(path, {"metadata": {"name": "web"}, "spec": spec})
    cluster.until(
        lambda: cluster.api.get(f"{path}/web").get("status", {}).get("readyReplicas") == 1,
        "the deployment is ready",
    )
    (pod,) = cluster.api.items(f"/api/v1/namespaces/{namespace}/pods")
    environ = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "HOME": str(cluster.top),
        "PATH": "/usr/bin:/bin",
    }
    words = [KUBECTL, "logs", "-f", "-n", namespace, pod["metadata"]["name"]]
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE) as follows:
        assert follows.stdout is not None
        assert follows.stdout.readline() == b"here\n"
        (first,) = cluster.machines[pod["spec"]["nodeName"]].processes(pod["metadata"]["uid"])
        first.kill()
        follows.wait()
    own = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
    cluster.until(
        lambda: cluster.api.get(own)["status"]["containerStatuses"][0]["restartCount"] == 1,
        "it is started again",
    )
