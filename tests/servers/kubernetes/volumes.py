"""Volumes for claims: a directory for each claim, as a cloud's storage driver makes a disk. This is
a thread of the cluster.

There are two classes: `network` (the default; every machine reaches the volume, and it survives the
loss of any of them) and `local` (on the disk of the machine where its first pod was scheduled, and
nowhere else). The directory is deleted together with its volume, unless the volume is to be
retained.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2

from tests.servers.kubernetes.api import Api, Object, Refused

NAME = "perdure.test/directory"
CLASSES = {"network": "Immediate", "local": "WaitForFirstConsumer"}
CHOSEN = "volume.kubernetes.io/selected-node"
PROVISIONED = "pv.kubernetes.io/provisioned-by"


class Provisioner:
    def __init__(self, api: Api, network: Path) -> None:
        self.api = api
        self.network = network
        self.network.mkdir(mode=0o755)
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._provision, self._reclaim)
        ]

    def start(self) -> None:
        for name, binding in CLASSES.items():
            default = (
                {"storageclass.kubernetes.io/is-default-class": "true"} if name == "network" else {}
            )
            body = {
                "metadata": {"name": name, "annotations": default},
                "provisioner": NAME,
                "volumeBindingMode": binding,
            }
            self.api.create("/apis/storage.k8s.io/v1/storageclasses", body)
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """Stop the thread. It ends when its watches end, which is when the API server is gone."""
        self._ended.set()

    def join(self) -> None:
        for each in self._threads:
            if each.is_alive():
                each.join()

    def _provision(self) -> None:
        for kind, claim in self.api.watch("/api/v1/persistentvolumeclaims", self._ended):
            wanted, metadata = claim["spec"], claim["metadata"]
            node = metadata.get("annotations", {}).get(CHOSEN, "")
            if (
                kind == "GONE"
                or wanted.get("volumeName")
                or wanted.get("storageClassName") not in CLASSES
                or "deletionTimestamp" in metadata
            ):
                continue
            if wanted["storageClassName"] == "network" or node:
                self._persist(lambda claim=claim, node=node: self._make(claim, node))

    def _make(self, claim: Object, node: str) -> None:
        wanted, metadata = claim["spec"], claim["metadata"]
        name = f"pvc-{metadata['uid']}"
        local = wanted["storageClassName"] == "local"
        path = f"/volumes/{name}" if local else str(self.network / name)
        if not local:
            # A claim is reported several times before it is bound. The directory's permissions are
            # right for the pods from the first report on.
            Path(path).mkdir(mode=0o755, exist_ok=True)
        claimed = {
            "kind": "PersistentVolumeClaim",
            "apiVersion": "v1",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
        }
        spec = {
            "capacity": {"storage": wanted["resources"]["requests"]["storage"]},
            "accessModes": wanted["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": wanted["storageClassName"],
            "hostPath": {"path": path},
            "claimRef": {**claimed, "uid": metadata["uid"]},
        }
        if local:
            here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
            spec["nodeAffinity"] = {
                "required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}
            }
        self.api.create(
            "/api/v1/persistentvolumes",
            {"metadata": {"name": name, "annotations": {PROVISIONED: NAME}}, "spec": spec},
        )

    def _reclaim(self) -> None:
        for kind, volume in self.api.watch("/api/v1/persistentvolumes", self._ended):
            ours = volume["metadata"].get("annotations", {}).get(PROVISIONED) == NAME
            released = volume.get("status", {}).get("phase") == "Released"
            if (
                ours
                and released
                and kind == "PUT"
                and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
            ):
                path = Path(volume["spec"]["hostPath"]["path"])
                if path.is_relative_to(self.network):
                    shutil.rmtree(path, ignore_errors=True)
                own = f"/api/v1/persistentvolumes/{volume['metadata']['name']}"
                self._persist(lambda own=own: self.api.discard(own))

    def _persist(self, call: Callable[[], object]) -> None:
        """Repeat the call until it succeeds, or is refused for good (for example because it was
        done already)."""
        while not self._ended.is_set():
            try:
                call()
                return
            except (httpx2.HTTPError, OSError, Refused) as error:
                if isinstance(error, Refused) and error.status < 500 and error.status != 429:
                    return
                self._ended.wait(0.2)
