"""Builds the objects of an attempt: its Job, the ConfigMap with its order, its claim. Pure.

Every pod gets the same protection of its state, secrets and permissions. `spec.pod` can add to a
pod but cannot weaken this protection. Names, labels, mounts and paths that belong to perdure are
ignored in `spec.pod`; the resource's schema already rejects them with an explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from perdure.kubernetes import order as orders
from perdure.kubernetes import sidecar
from perdure.kubernetes.objects import Container, Manifest, PodSpec
from perdure.kubernetes.requests import answers_of
from perdure.kubernetes.snapshot import ATTEMPT_LABEL, UID_LABEL
from perdure.kubernetes.spec import (
    FileFrom,
    PodVolume,
    Spec,
    Toleration,
    VolumeMount,
    task_spec,
)
from perdure.kubernetes.status import AttemptStatus
from perdure.kubernetes.transports import transport_of
from perdure.kubernetes.wanted import GROUP, KIND, VERSION, WantedRun
from perdure.model import OutcomeKind

USER = 10001
SIZE = "2Gi"
"""Size of a claim if neither the TaskRun nor the operator's defaults set one."""
SLACK_S = 300
"""Time in seconds that a pod may run beyond the time limits of its agent and its check. The pod
needs this time to download and upload state."""
KEPT_S = 7 * 86_400
NODE_GONE_S = 30
HOME = "/home/perdure"
"""Home directory of the image's user. Links in this directory lead to the agents' homes on the
volume."""
OWN_MOUNTS = ("/data", "/perdure", "/tmp", "/dev", HOME)
OWN_LABELS = ("perdure.dev/", "kubernetes.io/", "k8s.io/")
MADE_BY = ("app.kubernetes.io/managed-by", "perdure")
FENCED = "file:///data/checkpoints"
RECLAIM_LABEL = f"{GROUP}/reclaim"
"""Label on a claim. Its value `Delete` means that the claim is deleted with the last TaskRun that
uses it."""


KEPT_FOR = f"{GROUP}/kept-for"
"""Annotation of a claim that must be kept. Its value is the uid of the TaskRun that says `reclaim:
Keep`, or `several` if other TaskRuns may say so too."""


class Cluster(TypedDict):
    """The operator's settings that apply to all attempts."""

    image: str
    account: str


def labels(run: WantedRun, attempt: int = 0) -> dict[str, str]:
    """Return the labels of every object that belongs to a TaskRun. If `attempt` is given, return
    those of an object that belongs to this attempt."""
    found = {
        MADE_BY[0]: MADE_BY[1],
        f"{GROUP}/taskrun": run.name[:63].rstrip("-."),
        UID_LABEL: run.uid,
    }
    if attempt:
        return found | {ATTEMPT_LABEL: str(attempt)}
    return found


def owner(run: WantedRun) -> dict[str, object]:
    """Return the owner reference that makes the TaskRun an object's controller."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": run.name,
        "uid": run.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def config_map(run: WantedRun, texts: dict[str, str]) -> Manifest:
    """Return the ConfigMap for a TaskRun's orders and instructions."""
    meta = {
        "name": run.object_name,
        "namespace": run.namespace,
        "labels": labels(run),
        "ownerReferences": [owner(run)],
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": texts}


def claim(run: WantedRun) -> Manifest:
    """Return the volume claim of a TaskRun whose `spec.workspace.mode` is `Claim`. The claim has no
    owner reference, because the work on it may have to outlive the TaskRun."""
    spec = run.spec
    origin = {}
    for name, value in (("service", spec.service), ("task", spec.task), ("agent", spec.agent)):
        if value:
            origin[f"{GROUP}/{name}"] = value
    wanted: dict[str, object] = {
        "accessModes": ["ReadWriteOncePod"],
        "resources": {"requests": {"storage": spec.workspace.size or SIZE}},
    }
    if spec.workspace.storage_class_name:
        wanted["storageClassName"] = spec.workspace.storage_class_name
    marks = labels(run) | origin
    meta: dict[str, object] = {"name": run.claim, "namespace": run.namespace, "labels": marks}
    if spec.workspace.reclaim == "Delete":
        marks[RECLAIM_LABEL] = "Delete"
    else:
        meta["annotations"] = {KEPT_FOR: run.uid}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": wanted}


def order(
    run: WantedRun, record: AttemptStatus, contexts: Sequence[int], unlisted: int = 0
) -> bytes:
    """Return the encoded order of an attempt. `unlisted` is the number of earlier versions of the
    instructions that no longer exist. Raises UsageError if a pod would reject the order."""
    spec, status, volume = run.spec, run.status, run.spec.workspace
    earlier = []
    for each in status.attempts:
        if each.number < record.number and each.outcome in set(OutcomeKind):
            outcome = OutcomeKind(each.outcome)
            earlier.append(orders.Earlier(number=each.number, outcome=outcome, detail=each.detail))
    resume = orders.ResumeOrder(
        mode=spec.resume.mode, session_id=spec.resume.session_id, from_=spec.resume.from_
    )
    # The agent's requests are in the pod's database. Only the volume of workspace mode `Claim`
    # keeps this database, so in the other modes the agent cannot ask.
    request_expiry_s = spec.policy.request_expiry_seconds if volume.mode == "Claim" else 0.0
    return orders.encode(
        orders.Order(
            run=run.uid,
            name=orders.name_of(run.name, run.uid),
            attempt=record.number,
            spec=task_spec(spec),
            contexts=tuple(contexts),
            unlisted=unlisted,
            attempts_allowed=max(status.attempts_allowed, record.number),
            earlier=tuple(earlier),
            resume=resume,
            files=tuple(each.path for each in _files(run, record)),
            on_edit=spec.on_edit,
            transport=transport_of(spec.repository.url if spec.repository else ""),
            checkpoints=FENCED if volume.mode == "Shared" else volume.checkpoints,
            state="volume" if volume.mode == "Claim" else "checkpoints",
            request_expiry_s=request_expiry_s,
            answers=answers_of(status.requests),
        )
    )


def job(
    run: WantedRun,
    record: AttemptStatus,
    contexts: Sequence[int],
    claim_name: str,
    cluster: Cluster,
) -> Manifest:
    """Return the Job of an attempt. It starts exactly one pod and never replaces it."""
    mine = labels(run, record.number)
    deadline = _deadline(run.spec)
    pod = _pod(run, record, contexts, claim_name, cluster)
    spec = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                }
            ]
        },
        "ttlSecondsAfterFinished": KEPT_S,
        "template": {
            "metadata": {"labels": _labels(run.spec) | mine, "annotations": _annotations(run.spec)},
            "spec": pod,
        },
    }
    if deadline:
        # The Job has no deadline of its own. Such a deadline would include the time that the pod
        # waits to be scheduled, and would delete the pod together with its result.
        pod["activeDeadlineSeconds"] = deadline
    meta = {
        "name": record.job,
        "namespace": run.namespace,
        "labels": run.labels | mine,
        "ownerReferences": [owner(run)],
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


def _deadline(spec: Spec) -> int:
    """Return the time in seconds after which Kubernetes kills a pod that is still running. If the
    agent or the check has no time limit, the pod has none either: return 0."""
    policy = spec.policy
    if not policy.timeout_seconds or (policy.verify and not policy.verify_timeout_seconds):
        return 0
    check = policy.verify_timeout_seconds if policy.verify else 0
    return int(policy.timeout_seconds + check) + spec.pod.termination_grace_period_seconds + SLACK_S


def _pod(
    run: WantedRun,
    record: AttemptStatus,
    contexts: Sequence[int],
    claim_name: str,
    cluster: Cluster,
) -> PodSpec:
    pod = run.spec.pod
    volumes, mounts = _storage(run, record, contexts, claim_name)
    own = {volume["name"] for volume in volumes}
    for volume in pod.volumes:
        if volume.get("name") not in own and "hostPath" not in volume:
            volumes.append(volume)
    given = []
    for mount in pod.volume_mounts:
        if _may(str(mount.get("mountPath", ""))) and mount.get("name") not in own:
            given.append(mount)
    found: PodSpec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [*pod.tolerations, *_left_soon(pod.tolerations)],
        "containers": [_container(run.spec, [*mounts, *given], cluster)],
        "volumes": volumes,
    }
    if sidecar.secrets(run.spec):
        relay = sidecar.container(run.spec, cluster["image"])
        fixed = {each.get("name") for each in pod.volumes if "configMap" in each}
        relay["volumeMounts"] += [each for each in given if each.get("name") in fixed]
        found["initContainers"] = [relay]
    more = {
        "nodeSelector": pod.node_selector,
        "affinity": pod.affinity,
        "serviceAccountName": pod.service_account_name or cluster["account"],
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "schedulerName": pod.scheduler_name,
        "imagePullSecrets": pod.image_pull_secrets,
    }
    return found | {name: value for name, value in more.items() if value}


def _container(spec: Spec, mounts: list[VolumeMount], cluster: Cluster) -> Container:
    """Return the agent's container."""
    pod = spec.pod
    grace = str(pod.termination_grace_period_seconds)
    args = ["perdure", "work", "--run", "--order", "/perdure/order", "--grace", grace]
    if sidecar.secrets(spec):
        args += ["--relay", sidecar.AT]
    found: Container = {
        "name": "perdure",
        "image": pod.image or cluster["image"],
        "args": args,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
        "securityContext": sidecar.RIGHTS,
    }
    if pod.resources:
        found["resources"] = pod.resources
    if pod.image_pull_policy:
        found["imagePullPolicy"] = pod.image_pull_policy
    return found


def _storage(
    run: WantedRun, record: AttemptStatus, contexts: Sequence[int], claim_name: str
) -> tuple[list[PodVolume], list[VolumeMount]]:
    """Return the pod's volumes, and their mounts in the agent's container: /data, /perdure, /tmp
    and home. The agent can write nowhere else, except to volumes that the TaskRun adds. The agent's
    container does not mount the relay's Secrets."""
    spec, volume = run.spec, run.spec.workspace
    volumes: list[PodVolume] = [
        {
            "name": "perdure-order",
            "projected": {"sources": _order_sources(run, record, contexts), "defaultMode": 0o440},
        },
        {"name": "perdure-tmp", "emptyDir": {}},
        {"name": "perdure-home", "emptyDir": {}},
    ]
    mounts: list[VolumeMount] = [
        {"name": "perdure-order", "mountPath": "/perdure/order", "readOnly": True},
        {"name": "perdure-tmp", "mountPath": "/tmp"},
        {"name": "perdure-home", "mountPath": HOME},
    ]
    if volume.mode == "Claim":
        volumes.append({"name": "perdure-data", "persistentVolumeClaim": {"claimName": claim_name}})
    else:
        volumes.append({"name": "perdure-data", "emptyDir": {}})
    mounts.append({"name": "perdure-data", "mountPath": "/data"})
    if volume.mode == "Shared":
        volumes.append(
            {"name": "perdure-shared", "persistentVolumeClaim": {"claimName": volume.claim_name}}
        )
        path = f"{spec.service}/.task/{spec.task}/{spec.agent}"
        mounts.append({"name": "perdure-shared", "mountPath": "/data/checkpoints", "subPath": path})
    if spec.credentials_secret:
        whole, mount = sidecar.secret_volume("credentials", spec.credentials_secret)
        volumes.append(whole)
        mounts.append(mount)
    relayed = sidecar.secrets(spec)
    volumes += [sidecar.secret_volume(name, secret)[0] for name, secret in relayed.items()]
    if relayed:
        whole, mount = sidecar.address_volume(read_only=True)
        volumes.append(whole)
        mounts.append(mount)
    if sidecar.fetches_by_ssh(spec):
        volumes.append(sidecar.key_volume()[0])
    return volumes, mounts


def _order_sources(
    run: WantedRun, record: AttemptStatus, contexts: Sequence[int]
) -> list[dict[str, object]]:
    """Return the sources of the projected volume: the order, its instructions and its task files.
    Some instructions come from Secrets.

    Only the newest instructions must exist. The run usually has the older versions already, and
    their Secrets may be gone.
    """
    secrets = run.secrets
    items = [{"key": f"order-{record.number}", "path": orders.FILE}]
    for each in contexts:
        if each not in secrets:
            items.append({"key": f"context-{each}", "path": f"{orders.CONTEXTS}/{each}"})
    sources: list[dict[str, object]] = [
        {"configMap": {"name": run.object_name, "items": items}},
    ]
    for number, file in enumerate(_files(run, record)):
        sources.append(_file_source(file, f"{orders.FILES}/{number}"))
    for each in contexts:
        if each in secrets:
            secret = {
                "name": secrets[each].name,
                "items": [{"key": secrets[each].key, "path": f"{orders.CONTEXTS}/{each}"}],
                "optional": each != contexts[-1],
            }
            sources.append({"secret": secret})
    return sources


def _files(run: WantedRun, record: AttemptStatus) -> tuple[FileFrom, ...]:
    """Return the task files to give to an attempt. Return none if the spec now has newer
    instructions than the attempt, because the spec's files then belong to the newer instructions.
    """
    if run.spec.context_version == record.context_version:
        return run.spec.files
    return ()


def _file_source(file: FileFrom, path: str) -> dict[str, object]:
    ref = file.config_map_key_ref or file.secret_key_ref
    assert ref is not None, "`spec.check` has seen to it"
    kind = "configMap" if file.config_map_key_ref is not None else "secret"
    return {kind: {"name": ref.name, "items": [{"key": ref.key, "path": path}]}}


def _left_soon(given: Sequence[Toleration]) -> list[Toleration]:
    """Return the tolerations to add to a pod, so that it leaves an unresponsive node after 30 s
    instead of 300 s. A toleration that the TaskRun sets itself is not returned."""
    keys = {toleration.get("key") for toleration in given}
    found = []
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if key not in keys:
            found.append(
                {
                    "key": key,
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": NODE_GONE_S,
                }
            )
    return found


def _may(path: str) -> bool:
    parts = path.split("/")
    own = any(path == each or path.startswith(f"{each}/") for each in OWN_MOUNTS)
    return (
        path.startswith("/")
        and path.strip("/") != ""
        and "//" not in path
        and not own
        and not {".", ".."} & set(parts)
    )


def _labels(spec: Spec) -> dict[str, str]:
    found = {}
    for name, value in spec.pod.labels.items():
        if not any(own in name for own in OWN_LABELS):
            found[name] = value
    return found


def _annotations(spec: Spec) -> dict[str, str]:
    found = {}
    for name, value in spec.pod.annotations.items():
        if not name.startswith(f"{GROUP}/"):
            found[name] = value
    return found
