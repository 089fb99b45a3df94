"""A namespace with its own operator, and the changes that tests make to the cluster around it:
nodes, volumes, evictions, quotas."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obstore.store import from_url

from perdure.capsule.objects import CheckpointStore, DirectBucket
from tests.kubernetes.operators import Operator, install
from tests.kubernetes.run import Run
from tests.servers.kubernetes.api import Api, Object
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.images import SCRIPTED
from tests.servers.s3 import Bucket

KIND = {"apiVersion": "perdure.dev/v1alpha1", "kind": "TaskRun"}
LOST = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}


@dataclass
class Place:
    """A namespace. `bucket` is the object store, whose keys are in the Secret `store`. Context
    managers that are entered into `stack` end with the namespace."""

    cluster: Cluster
    namespace: str
    bucket: Bucket
    operator: Operator
    stack: ExitStack

    @property
    def api(self) -> Api:
        return self.cluster.api

    def of(self, version: str, plural: str, name: str = "") -> str:
        """Return the API server's path for a kind of object in this namespace, or for one
        object."""
        top = "/api/v1" if version == "v1" else f"/apis/{version}"
        return f"{top}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def runs(self, name: str = "") -> str:
        return self.of("perdure.dev/v1alpha1", "taskruns", name)

    def said(self, pod: str) -> str:
        """Return the end of a pod's output."""
        try:
            return self.api.text(f"{self.of('v1', 'pods', pod)}/log")[-3000:]
        except AssertionError as error:
            return str(error)

    def perdure(self, *words: str) -> str:
        """Return the output of `kubectl perdure`."""
        return self.cluster.kubectl("perdure", *words, "--namespace", self.namespace)

    # --- what is made in it
    # ------------------------------------------------------------------------------------------

    def make(self, name: str, spec: Object, **metadata: Any) -> Object:
        """Make a TaskRun, and return it as the API server stores it."""
        return self.api.create(
            self.runs(), {**KIND, "metadata": {"name": name, **metadata}, "spec": spec}
        )

    def scripted(self, name: str, does: str = "works 0.2", mode: str = "Claim", **spec: Any) -> Run:
        """Make a TaskRun whose pods have no agent: see `scripted/attempt.py`."""
        pod = {"image": SCRIPTED, "terminationGracePeriodSeconds": 15, **spec.pop("pod", {})}
        whole = {
            "service": "shop",
            "task": name,
            "prompt": does,
            "workspace": self.workspace(mode),
            "pod": pod,
        }
        return Run(self, name, self.make(name, {**whole, **spec}))

    def workspace(self, mode: str) -> Object:
        """Return the TaskRun's field that says where its state is kept, for one of the modes."""
        if mode == "Checkpoints":
            ref = {"name": "store"}
            return {"mode": mode, "checkpoints": self.bucket.url, "checkpointsSecretRef": ref}
        if mode == "Shared":
            return {"mode": mode, "claimName": "shared"}
        return {"mode": mode, "size": "1Gi"}

    def secret(self, name: str, values: dict[str, str]) -> str:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.api.create(self.of("v1", "secrets"), {"metadata": {"name": name}, "data": encoded})
        return name

    def share(self) -> None:
        """Make a claim that several pods may mount, for mode Shared."""
        spec = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "network",
        }
        self.api.create(
            self.of("v1", "persistentvolumeclaims"), {"metadata": {"name": "shared"}, "spec": spec}
        )

    def volume(self, storage_class: str) -> None:
        """Make a volume for a claim whose class has no provisioner."""
        name = f"{self.namespace}-{storage_class}"
        path = self.cluster.top / "volumes" / name
        path.mkdir()
        of = {
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteOncePod"],
            "persistentVolumeReclaimPolicy": "Retain",
        }
        spec = {**of, "storageClassName": storage_class, "hostPath": {"path": str(path)}}
        self.api.create("/api/v1/persistentvolumes", {"metadata": {"name": name}, "spec": spec})

    def volume_of(self, claim: str) -> Path:
        """Return the directory of a claim's files on this machine."""
        name = self.api.get(self.of("v1", "persistentvolumeclaims", claim))["spec"]["volumeName"]
        return Path(self.api.get(f"/api/v1/persistentvolumes/{name}")["spec"]["hostPath"]["path"])

    def store(self) -> CheckpointStore:
        """Return the checkpoint store, as a test reads it."""
        given = {
            name.lower(): value
            for name, value in self.bucket.environ().items()
            if name != "AWS_ALLOW_HTTP"
        }
        return CheckpointStore(
            self.bucket.url,
            DirectBucket(
                from_url(self.bucket.url, config=given, client_options={"allow_http": True})
            ),
        )

    def another_operator(self) -> Operator:
        """Return a second operator for the same namespace, as a context manager."""
        return Operator(self.cluster, self.namespace, name="another")

    # --- what happens around it
    # --------------------------------------------------------------------------------------

    def kill_pod(self, pod: Object) -> None:
        """Send SIGKILL to the first process of the pod's container, which ends every process in
        it."""
        machine, uid = self.cluster.machines[pod["spec"]["nodeName"]], pod["metadata"]["uid"]
        processes = self.cluster.until(
            lambda: machine.processes(uid), f"{pod['metadata']['name']} is at work"
        )
        processes[0].kill()

    def evict(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": self.namespace},
        }
        self.api.create(f"{self.of('v1', 'pods', name)}/eviction", body)

    @contextmanager
    def cordoned(self, node: str) -> Iterator[None]:
        """Keep pods from being scheduled to the node, inside the block."""
        self.api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})
        try:
            yield
        finally:
            self.api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": None}})

    @contextmanager
    def labelled(self, node: str, **labels: str) -> Iterator[None]:
        self.api.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": labels}})
        try:
            yield
        finally:
            self.api.patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": dict.fromkeys(labels)}})

    @contextmanager
    def lost(self, node: str) -> Iterator[None]:
        """Cut the power of a node's machine. At the end of the block the machine runs again."""
        self.cluster.machines[node].kill()
        try:
            yield
        finally:
            self._taint(node, [each for each in self._taints(node) if each["key"] != LOST["key"]])
            self.cluster.machines[node].start()
            self.cluster.until(self.cluster.machines[node].is_ready, f"node {node} is back")

    def declare_lost(self, node: str) -> None:
        """Declare that a node is out of service for certain, as a person does."""
        self._taint(node, [*self._taints(node), LOST])

    def _taints(self, node: str) -> list[Object]:
        return list(self.api.get(f"/api/v1/nodes/{node}")["spec"].get("taints") or ())

    def _taint(self, node: str, taints: list[Object]) -> None:
        self.api.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": taints}})


@contextmanager
def place(cluster: Cluster, bucket: Bucket, **options: Any) -> Iterator[Place]:
    """Make a namespace with an operator, and a Secret for the checkpoint store. Everything in the
    namespace ends with the block."""
    install(cluster)
    namespace = cluster.namespace()
    with ExitStack() as stack:
        stack.callback(
            lambda: cluster.until(
                lambda: cluster.forget(namespace) is None, f"{namespace} is forgotten"
            )
        )
        operator = stack.enter_context(Operator(cluster, namespace, **options))
        made = Place(cluster, namespace, bucket, operator, stack)
        made.secret("store", bucket.environ())
        yield made
