"""The objects of an attempt: their fixed parts, what a TaskRun may add, and what it may not remove."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.kubernetes import manifests, order
from perdure.kubernetes.defaults import defaults_of, filled
from perdure.kubernetes.status import MOST_RECORDS, TaskRunStatus
from perdure.kubernetes.status_moves import begun, patch
from perdure.kubernetes.wanted import wanted
from tests.kubernetes import making

TOLD = manifests.Cluster(image="perdure:1", account="attempts")


def made(**spec: Any) -> dict[str, Any]:
    body = making.taskrun(**spec)
    run = wanted(body)
    assert not run.invalid
    status = begun(TaskRunStatus(context_version=2), 3, run, 1_795_000_000_000)
    return manifests.job(run, status.attempts[-1], (1, 2), run.claim, TOLD)


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def test_one_job_one_pod_once():
    """The Job never retries, not even after a disruption. The deadline is set on the pod, the owner
    is set, and names are within their limits."""
    body = making.taskrun("a" * 63)
    run = wanted(body)
    job = manifests.job(
        run, begun(TaskRunStatus(), 12345, run, 0).attempts[-1], (1,), run.claim, TOLD
    )
    spec = job["spec"]
    assert (spec["backoffLimit"], spec["podReplacementPolicy"], pod_of(job)["restartPolicy"]) == (
        0,
        "Failed",
        "Never",
    )
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob"]
    assert run.spec.policy.timeout_seconds < pod_of(job)["activeDeadlineSeconds"]
    assert "activeDeadlineSeconds" not in spec, "it would count the time that a pod waits for room"
    assert len(job["metadata"]["name"]) <= 57 and job["metadata"]["name"].endswith("-12345")
    assert (
        job["metadata"]["ownerReferences"][0]["uid"] == run.uid
        and job["metadata"]["ownerReferences"][0]["controller"]
    )
    for labels in (job["metadata"]["labels"], spec["template"]["metadata"]["labels"]):
        assert (
            labels["perdure.dev/taskrun-uid"] == run.uid
            and labels["perdure.dev/attempt"] == "12345"
        )


def test_what_a_taskrun_may_add_and_not_take_away():
    """A TaskRun may add volumes, labels, resources and node selectors. It cannot remove perdure's
    mounts, labels and limits of rights."""
    mine = {"name": "cache", "emptyDir": {}}
    job = made(
        pod={
            "image": "mine:2", "resources": {"limits": {"memory": "2Gi"}}, "nodeSelector": {"disk": "fast"},
            "labels": {"team": "a", "perdure.dev/attempt": "9", "batch.kubernetes.io/job-name": "x"},
            "annotations": {"note": "b", "perdure.dev/x": "y"},
            "volumes": [mine, {"name": "perdure-data", "emptyDir": {}}, {"name": "root", "hostPath": {"path": "/"}}],
            "volumeMounts": [
                {"name": "cache", "mountPath": "/cache"}, {"name": "cache", "mountPath": "/data/x"},
                {"name": "cache", "mountPath": "/tmp"}, {"name": "cache", "mountPath": "/cache/../perdure/order"},
            ],
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 5}],
        }
    )  # fmt: skip
    pod, template = pod_of(job), job["spec"]["template"]["metadata"]
    container = pod["containers"][0]
    assert (
        container["image"] == "mine:2"
        and container["resources"]["limits"] == {"memory": "2Gi"}
        and pod["nodeSelector"] == {"disk": "fast"}
    )
    assert template["labels"]["team"] == "a" and template["labels"]["perdure.dev/attempt"] == "3"
    assert "batch.kubernetes.io/job-name" not in template["labels"] and template["annotations"] == {
        "note": "b"
    }
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert {"/perdure/order", "/tmp", "/data"} < set(paths) and len(paths) == len(set(paths))
    assert [path for path in paths if "cache" in path or path.startswith("/data/")] == ["/cache"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert (
        volumes["cache"] == mine and "root" not in volumes and len(volumes) == len(pod["volumes"])
    )
    assert volumes["perdure-data"]["persistentVolumeClaim"]
    rights = {**pod["securityContext"], **container["securityContext"]}
    assert (
        rights["runAsNonRoot"]
        and rights["readOnlyRootFilesystem"]
        and not rights["allowPrivilegeEscalation"]
    )
    assert rights["capabilities"] == {"drop": ["ALL"]} and not pod["automountServiceAccountToken"]
    assert {each["key"]: each["tolerationSeconds"] for each in pod["tolerations"]} == {
        "node.kubernetes.io/unreachable": 5, "node.kubernetes.io/not-ready": 30,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("workspace", "state", "checkpoints"),
    [
        ({"mode": "Claim"}, "volume", ""),
        ({"mode": "Claim", "checkpoints": "s3://b/p"}, "volume", "s3://b/p"),
        ({"mode": "Checkpoints", "checkpoints": "s3://b/p"}, "checkpoints", "s3://b/p"),
        ({"mode": "Shared", "claimName": "all"}, "checkpoints", "file:///data/checkpoints"),
    ],
)
def test_where_the_state_lies(workspace: dict[str, str], state: str, checkpoints: str):
    """In each mode the order says where the state is, and a pod accepts the order. /data is a
    volume claim only in mode Claim."""
    run = wanted(making.taskrun(workspace=workspace))
    record = begun(TaskRunStatus(context_version=1), 1, run, 0).attempts[-1]
    found = order.decode(manifests.order(run, record, (1,)))
    assert (found.state, found.checkpoints, found.attempt) == (state, checkpoints, 1)
    volumes = {
        each["name"]: each
        for each in pod_of(manifests.job(run, record, (1,), run.claim, TOLD))["volumes"]
    }
    assert ("persistentVolumeClaim" in volumes["perdure-data"]) == (workspace["mode"] == "Claim")
    assert ("perdure-shared" in volumes) == (workspace["mode"] == "Shared")


def test_the_agent_s_container_has_the_agent_s_secret_alone():
    """The Secrets of repository and checkpoint store are mounted only in the relay's container.
    That container starts first, ends last and reads nothing that an agent can write. The agent's
    container can only read the directory with the relay's address."""
    body = making.taskrun(
        credentialsSecretRef={"name": "keys"},
        repository={"url": "https://x/y", "credentialsSecretRef": {"name": "git"}},
        workspace={
            "mode": "Claim",
            "checkpoints": "s3://b/p",
            "checkpointsSecretRef": {"name": "s3"},
        },
        pod={
            "image": "mine",
            "imagePullPolicy": "Never",
            "resources": {"requests": {"cpu": "2", "memory": "4Gi", "example.com/gpu": "1"}},
            "volumes": [
                {"name": "ca", "configMap": {"name": "ca"}},
                {"name": "shared", "emptyDir": {}},
            ],
            "volumeMounts": [
                {"name": "ca", "mountPath": "/etc/ssl/certs", "readOnly": True},
                {"name": "shared", "mountPath": "/shared"},
            ],
        },
    )
    run = wanted(body)
    pod = pod_of(
        manifests.job(run, begun(TaskRunStatus(), 1, run, 0).attempts[-1], (1,), "c", TOLD)
    )
    (agent,), (relay,) = pod["containers"], pod["initContainers"]
    seen = {each["mountPath"]: each.get("readOnly", False) for each in agent["volumeMounts"]}
    assert "/perdure/secrets/credentials" in seen and seen["/perdure/relay"] is True
    assert not {"/perdure/secrets/repository", "/perdure/secrets/checkpoints"} & seen.keys()
    assert agent["args"][-2:] == ["--relay", "/perdure/relay"]
    assert {each["mountPath"]: each.get("readOnly", False) for each in relay["volumeMounts"]} == {
        "/perdure/order": True, "/perdure/relay": False, "/perdure/secrets/repository": True,
        "/perdure/secrets/checkpoints": True, "/etc/ssl/certs": True,
    }  # fmt: skip
    assert (relay["restartPolicy"], relay["image"], relay["imagePullPolicy"]) == (
        "Always",
        "mine",
        "Never",
    )
    assert relay["resources"] == {"requests": {"cpu": "200m", "memory": "256Mi"}}
    assert relay["securityContext"] == agent["securityContext"]
    assert not pod.get("shareProcessNamespace")


def test_secrets_are_files_and_the_queue_is_passed_on():
    """The pod's environment contains no secret, and the Job gets Kueue's label. Without a Secret
    for repository or store there is no relay."""
    body = making.taskrun(credentialsSecretRef={"name": "keys"}, repository={"url": "https://x/y"})
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team", "other": "x"}
    run = wanted(body)
    job = manifests.job(run, begun(TaskRunStatus(), 1, run, 0).attempts[-1], (1,), run.claim, TOLD)
    container = pod_of(job)["containers"][0]
    assert "env" not in container and "envFrom" not in container
    assert "/perdure/secrets/credentials" in {
        mount["mountPath"] for mount in container["volumeMounts"]
    }
    assert "initContainers" not in pod_of(job) and "--relay" not in container["args"]
    assert (
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        and "other" not in job["metadata"]["labels"]
    )


NAMED: dict[str, Any] = {
    "credentialsSecretName": "keys",
    "repository": {"url": "https://x/y", "credentialsSecretName": "git"},
    "workspace": {"checkpoints": "s3://b/p", "checkpointsSecretName": "s3"},
}
REFERRED: dict[str, Any] = {
    "credentialsSecretRef": {"name": "keys"},
    "repository": {"url": "https://x/y", "credentialsSecretRef": {"name": "git"}},
    "workspace": {"checkpoints": "s3://b/p", "checkpointsSecretRef": {"name": "s3"}},
}


def test_a_secret_s_earlier_field_means_the_same():
    """`...SecretName` gives the same Job as `...SecretRef`, in a TaskRun and in the operator's
    defaults. Setting both is invalid, also if the API server does not check that rule."""
    jobs = []
    for spec in (NAMED, REFERRED):
        run = wanted(making.taskrun(**spec))
        assert not run.invalid
        attempt = begun(TaskRunStatus(), 1, run, 0).attempts[-1]
        jobs.append(manifests.job(run, attempt, (1,), run.claim, TOLD))
    assert jobs[0] == jobs[1] and "'secretName': 's3'" in str(jobs[0])
    both = [{"credentialsSecretName": "keys"}]
    both += [{part: REFERRED[part] | NAMED[part]} for part in ("repository", "workspace")]
    for change in both:
        found = wanted(making.taskrun(**REFERRED | change)).invalid
        assert "SecretName is the earlier form of" in found
    for where in (NAMED["workspace"], REFERRED["workspace"]):
        given = defaults_of(msgspec.json.encode({"workspace": where}).decode())
        assert filled(wanted(making.taskrun()), given).spec.workspace.checkpoints_secret == "s3"


def test_instructions_of_a_secret_come_into_the_pod_from_the_secret():
    """The pod reads the instructions from the Secret. The order requires the newest version, and
    the pod may have an older one already."""
    body = making.taskrun(
        prompt="", promptFrom={"secretKeyRef": {"name": "newest", "key": "text"}}, contextVersion=3
    )
    body["status"] = {
        "contextVersion": 3,
        "instructionsFrom": [{"version": 1, "name": "oldest", "key": "task.md"}],
    }
    run = wanted(body)
    assert not run.invalid
    job = manifests.job(run, begun(run.status, 4, run, 0).attempts[-1], (1, 2, 3), run.claim, TOLD)
    (order,) = (each for each in pod_of(job)["volumes"] if each["name"] == "perdure-order")
    assert order["projected"]["sources"] == [
        {
            "configMap": {
                "name": run.object_name,
                "items": [
                    {"key": "order-4", "path": "order.json"},
                    {"key": "context-2", "path": "contexts/2"},
                ],
            }
        },
        {
            "secret": {
                "name": "oldest",
                "items": [{"key": "task.md", "path": "contexts/1"}],
                "optional": True,
            }
        },
        {
            "secret": {
                "name": "newest",
                "items": [{"key": "text", "path": "contexts/3"}],
                "optional": False,
            }
        },
    ]
    assert order["projected"]["defaultMode"] == 0o440


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"prompt": ""}, "prompt"),
        ({"service": ""}, "repository"),
        ({"policy": {"attempts": "many"}}, "policy.attempts"),
        ({"policy": {"continuity": "never"}}, "policy.continuity"),
        ({"workspace": {"mode": "Shared"}}, "claimName"),
        ({"workspace": {"mode": "Checkpoints"}}, "checkpoints"),
        ({"pod": {"labels": ["a"]}}, "pod.labels"),
        ({"contextVersion": 0}, "contextVersion"),
    ],
)
def test_a_spec_that_cannot_be_used(spec: dict[str, Any], words: str):
    """A value that another version of the schema accepted is refused with the field's name, and no
    error is raised."""
    assert words in wanted(making.taskrun(**spec)).invalid


@pytest.mark.parametrize(
    "status",
    [
        {"attempts": "x"},
        {"phase": 7, "attempt": 3},
        {"conditions": [{"type": 1}]},
        {"attempts": [{"number": "1"}]},
    ],
)
def test_a_status_that_somebody_else_wrote(status: dict[str, Any]):
    """Invalid parts of a status are left out, and the valid parts are read."""
    found = wanted({**making.taskrun(), "status": status}).status
    assert found.attempts == () and found.attempt == status.get("attempt", 0)


def test_a_long_history_is_cut_and_nothing_is_forgotten():
    """Only the newest 50 attempts are kept in the status, but also the number of older attempts
    that count. An unchanged status is not written."""
    run = wanted(making.taskrun())
    status = TaskRunStatus(context_version=1)
    for number in range(1, 71):
        status = begun(status, number, run, 0)
        last = msgspec.structs.replace(
            status.attempts[-1],
            outcome="failed" if number % 2 else "lost",
            infrastructure=not number % 2,
        )
        status = msgspec.structs.replace(status, attempts=(*status.attempts[:-1], last))
    assert (
        len(status.attempts) == MOST_RECORDS
        and status.used_before == 10
        and status.attempts[0].number == 21
    )
    stored = msgspec.json.decode(msgspec.json.encode(status))
    assert patch(stored, status) == {}
    assert patch(stored, msgspec.structs.replace(status, phase="Failed", run_after="")) == {
        "phase": "Failed"
    }


GIVEN = {
    "pod": {
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "regcred"}],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "nodeSelector": {"pool": "agents", "zone": "a"},
        "tolerations": [{"key": "agents", "operator": "Exists"}],
        "runtimeClassName": "gvisor",
    },
    "workspace": {
        "size": "3Gi",
        "checkpoints": "s3://b/p",
        "checkpointsSecretRef": {"name": "keys"},
    },
    "ttlSecondsAfterFinished": 60,
}


def test_what_the_operator_gives_and_a_taskrun_names_itself():
    """A TaskRun's own values have precedence over the operator's defaults. Resources and selectors
    are merged by name, and no default contradicts a value of the TaskRun."""
    given = defaults_of(msgspec.json.encode(GIVEN).decode())
    bare = filled(wanted(making.taskrun()), given)
    assert bare.spec.pod.resources == GIVEN["pod"]["resources"]
    assert (bare.spec.workspace.checkpoints, bare.spec.ttl_seconds_after_finished) == (
        "s3://b/p",
        60,
    )
    own = {
        "resources": {"requests": {"memory": "4Gi"}, "limits": {"cpu": "100m"}},
        "nodeSelector": {"zone": "b"},
        "imagePullSecrets": [{"name": "mine"}],
        "runtimeClassName": "kata",
    }
    where = {"size": "9Gi", "checkpoints": "s3://own/p"}
    run = wanted(making.taskrun(pod=own, workspace=where, ttlSecondsAfterFinished=0))
    found = filled(run, given).spec
    assert found.pod.resources == {"requests": {"memory": "4Gi"}, "limits": {"cpu": "100m"}}
    assert found.pod.node_selector == {"pool": "agents", "zone": "b"}
    assert found.pod.image_pull_secrets == [{"name": "mine"}, {"name": "regcred"}]
    assert (found.pod.runtime_class_name, found.pod.image_pull_policy) == ("kata", "Always")
    assert (found.workspace.size, found.workspace.checkpoints) == ("9Gi", "s3://own/p")
    assert bare.spec.workspace.checkpoints_secret == "keys"
    assert found.workspace.checkpoints_secret == ""
    assert found.ttl_seconds_after_finished == 0
    shared = {"mode": "Checkpoints", "checkpoints": "s3://own/p"}
    assert filled(wanted(making.taskrun(workspace=shared)), given).spec.workspace.size == ""


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        '{"pod": {"image": "a"}}',
        '{"workspace": {"size": 1}}',
        '{"workspace": {"checkpointsSecretRef": {"name": "a"}, "checkpointsSecretName": "a"}}',
    ],
)
def test_defaults_that_cannot_be_used(text: str):
    """An invalid default is reported at the start, with its field."""
    with pytest.raises(ValueError, match=r"."):
        defaults_of(text)
