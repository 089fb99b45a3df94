"""The node agent: like a kubelet, for pods as real processes. `python -m
tests.servers.kubernetes.node NAME DIRECTORY`.

It is a process inside a machine (`tests.servers.kubernetes.machine`). It makes its Node, renews its
Lease every second, runs the pods that the scheduler gives it (`tests.servers.kubernetes.pod`), and
serves their logs. The node agent may be killed at any time.

Not supported: pulling of images, networks of pods, exec and attach, CPU limits, priorities among
pods, refreshed ConfigMaps and Secrets.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from tests.servers.kubernetes.api import Access, Api, Object, Refused, now, now_micro
from tests.servers.kubernetes.images import images
from tests.servers.kubernetes.logs import serve
from tests.servers.kubernetes.pod import PodLife, Room
from tests.servers.kubernetes.started import Started

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
BEAT_S = 1.0
RESOURCES = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "256Gi"}


class Node:
    def __init__(self, name: str, directory: Path) -> None:
        said = json.loads((directory / "node.json").read_text())
        self.name = name
        self.api = Api(Access(said["server"], Path(said["ca_file"]), said["token"], f"node-{name}"))
        server = urlsplit(said["server"])
        address = (str(server.hostname), str(server.port))
        self.room = Room(
            self.api, name, directory, Path(said["network"]), images(directory / "images"), address
        )
        self.lives: dict[str, PodLife] = {}
        self.port = serve(self, Path(said["ca_file"]), Path(said["key"]))

    def live(self) -> None:
        """Run until the process is killed."""
        self._persist(self._register)
        threading.Thread(target=self._beat, daemon=True).start()
        self._persist(self._bury)
        for kind, pod in self.api.watch(
            "/api/v1/pods", threading.Event(), fieldSelector=f"spec.nodeName={self.name}"
        ):
            uid = pod["metadata"]["uid"]
            if kind == "GONE":
                if uid in self.lives:
                    self.lives.pop(uid).gone()
            elif uid in self.lives:
                self.lives[uid].see(pod)
            else:
                self.lives[uid] = PodLife(self.room, pod)
                self.lives[uid].start()

    def find(self, namespace: str, name: str) -> PodLife | None:
        for life in list(self.lives.values()):
            metadata = life.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return life
        return None

    def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        try:
            self.api.create("/api/v1/nodes", {"metadata": {"name": self.name, "labels": labels}})
        except Refused as error:
            if error.status != 409:
                raise
        self._tell()
        lease = {
            "metadata": {"name": self.name},
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": 40,
                "renewTime": now_micro(),
            },
        }
        try:
            self.api.create(LEASES, lease)
        except Refused as error:
            if error.status != 409:
                raise

    def _tell(self) -> None:
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "the node agent is there",
        }
        conditions: list[Object] = [
            {**ready, "lastHeartbeatTime": now(), "lastTransitionTime": self._since()}
        ]
        status = {
            "capacity": RESOURCES,
            "allocatable": RESOURCES,
            "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            "nodeInfo": {
                **dict.fromkeys(
                    ("machineID", "systemUUID", "bootID", "kernelVersion", "osImage"), ""
                ),
                "architecture": "amd64",
            },
        }
        status["nodeInfo"] |= {
            "containerRuntimeVersion": "perdure://1",
            "kubeletVersion": "v1.36.2",
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
        }
        self.api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status}, "strategic")

    def _since(self) -> str:
        found = self.api.find(f"/api/v1/nodes/{self.name}") or {"status": {}}
        ready = [
            each
            for each in found["status"].get("conditions", ())
            if each["type"] == "Ready" and each["status"] == "True"
        ]
        return str(ready[0]["lastTransitionTime"]) if ready else now()

    def _beat(self) -> None:
        told = time.monotonic()
        while True:
            try:
                spec = {
                    "holderIdentity": self.name,
                    "leaseDurationSeconds": 40,
                    "renewTime": now_micro(),
                }
                self.api.patch(f"{LEASES}/{self.name}", {"spec": spec})
                if time.monotonic() > told + 5 * BEAT_S:
                    self._tell()
                    told = time.monotonic()
            except (httpx2.HTTPError, OSError, Refused) as error:
                print(f"heartbeat: {error!r}", flush=True)
            time.sleep(BEAT_S)

    def _bury(self) -> None:
        """End containers of an earlier node agent whose pods have been deleted since."""
        there = {
            each["metadata"]["uid"]
            for each in self.api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}")
        }
        for place in (self.room.directory / "pods").glob("*"):
            if place.name not in there:
                for one in (place / "containers").glob("*/*"):
                    Started(one).kill(signal.SIGKILL)
                shutil.rmtree(place, ignore_errors=True)

    def _persist(self, call: Callable[[], None]) -> None:
        while True:
            try:
                call()
                return
            except (httpx2.HTTPError, OSError, Refused) as error:
                print(f"not yet: {error!r}", flush=True)
                time.sleep(0.2)


if __name__ == "__main__":
    os.umask(0o022)
    Node(sys.argv[1], Path(sys.argv[2])).live()
