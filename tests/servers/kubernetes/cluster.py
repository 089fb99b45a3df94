"""A Kubernetes cluster of a test: etcd, kube-apiserver, kube-controller-manager and kube-scheduler
as processes on 127.0.0.1, and machines.

All its files are below one scratch directory, and it ends with the thread that started it. The
machines (`tests.servers.kubernetes.machine`) run the pods as real processes. Volumes are
directories, which are made when a claim needs them (`tests.servers.kubernetes.volumes`).

Pods share the network of the host: every pod can reach what a test serves on 127.0.0.1 (the
rehearsal, a git server, PostgreSQL). NetworkPolicies, Services and ports of pods are stored and
admitted, but not enforced.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.servers.kubernetes import flags, limits
from tests.servers.kubernetes.api import Access, Api, Refused
from tests.servers.kubernetes.build import program
from tests.servers.kubernetes.machine import Machine
from tests.servers.kubernetes.volumes import Provisioner

PATIENCE_S = 180.0
NODES = ("one", "two")
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
KUBECTL = str(Path(sys.executable).with_name("kubectl"))
PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


class Cluster:
    """A cluster. `api` is a client with administrator rights, and `kubeconfig` gives other programs
    the same access. `machines` has the machine of each node, by the node's name."""

    def __init__(self) -> None:
        assert os.geteuid() == 0, (
            "the tests on Kubernetes run as root: pods are processes in namespaces of their own"
        )
        self.top = Path(tempfile.mkdtemp(prefix="perdure-kubernetes-", dir="/tmp"))
        # Processes of other users, which many pods are, must pass through this directory to their
        # mounts.
        self.top.chmod(0o711)
        self.plan = flags.plan(self.top)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.machines: dict[str, Machine] = {}
        self.access = Access(self.plan.server, self.plan.ca_file, self.plan.tokens["admin"])
        self.kubeconfig = self.access.kubeconfig(self.top / "admin.kubeconfig")
        self.api = Api(self.access)
        self.provisioner = Provisioner(self.api, self.top / "volumes")

    # --- its life
    # ------------------------------------------------------------------------------------------------

    def start(self, nodes: tuple[str, ...] = NODES) -> Cluster:
        """Start the cluster, wait until it schedules and runs pods, and return this object."""
        for name in PARTS:
            self.run(name)
            if name == "kube-apiserver":
                self.until(self._is_ready, "the API server is ready")
        self.provisioner.start()
        for name in nodes:
            self.add(name)
        for name in nodes:
            self.until(lambda name=name: self.machines[name].is_ready(), f"node {name} is ready")
        self.until(
            lambda: self.api.find("/api/v1/namespaces/default/serviceaccounts/default"),
            "there is a service account",
        )
        return self

    def run(self, name: str) -> None:
        """Start a part of the control plane, for the first time or after it was killed."""
        with (self.top / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", str(program(name)), *self.plan.flags[name]], cwd=self.top, env={"HOME": str(self.top)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """Send SIGKILL to a part of the control plane. `run` starts it again."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Suspend a part of the control plane (SIGSTOP), or continue it (SIGCONT)."""
        self.processes[name].send_signal(number)

    def restart(self, name: str = "kube-apiserver") -> None:
        """Kill the API server, start it again, and wait until it answers."""
        self.kill(name)
        self.run(name)
        self.until(self._is_ready, "the API server is ready")

    def add(self, name: str) -> Machine:
        """Add a machine, which becomes a node, and return it."""
        self.machines[name] = Machine(name, self.top, self.api, self.plan.access(f"node-{name}"))
        return self.machines[name].start()

    def mend(self) -> Cluster:
        """Start everything that does not run, wait until all machines are nodes that accept pods,
        and return this object."""
        for name in PARTS:
            if name not in self.processes:
                self.run(name)
            self.signal(name, signal.SIGCONT)
        self.until(self._is_ready, "the API server is ready")
        for name, machine in self.machines.items():
            if not self.api.find(f"/api/v1/nodes/{name}"):
                # A node agent makes its Node object only when it starts.
                machine.partition()
            machine.start()
            self.until(lambda machine=machine: self._is_whole(machine), f"node {name} is ready")
        return self

    def remove(self) -> None:
        """Remove everything: processes, files and mounts."""
        self.provisioner.stop()
        for machine in self.machines.values():
            machine.kill()
        for name in reversed(list(self.processes)):
            self.kill(name)
        self.provisioner.join()
        self.api.close()
        shutil.rmtree(self.top)
        limits.sweep(self.top)

    # --- what tests ask
    # ------------------------------------------------------------------------------------------

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """Wait until `met` returns a true value, and return that value. A refused request or a
        broken connection counts as no value. Raise AssertionError after three minutes."""
        end = time.monotonic() + PATIENCE_S
        last: object = None
        while time.monotonic() < end:
            try:
                if last := met():
                    return last
            except (Refused, OSError, flags.TransportError) as error:
                last = error
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended\n{self.said(name)}"
            time.sleep(0.05)
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what} (last: {last})")

    def said(self, name: str) -> str:
        """Return the end of the log of a part of the control plane, or of a node agent."""
        return (self.top / f"{name}.log").read_text(errors="replace")[-5000:]

    def kubectl(self, *words: str, stdin: str = "", kubeconfig: Path | None = None) -> str:
        """Return the output of kubectl. Raise AssertionError with kubectl's message if it fails."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the directory of the plugin
        environ = {
            "PATH": path,
            "HOME": str(self.top),
            "KUBECONFIG": str(kubeconfig or self.kubeconfig),
        }
        ran = subprocess.run(
            [KUBECTL, *words], env=environ, input=stdin, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def namespace(self) -> str:
        """Make a namespace in which pods may be created, and return its name."""
        name = f"t{secrets.token_hex(4)}"
        self.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        self.until(
            lambda: self.api.find(f"/api/v1/namespaces/{name}/serviceaccounts/default"),
            f"{name} has a service account",
        )
        return name

    def forget(self, namespace: str) -> None:
        """Delete a namespace, and kill every process in it without a grace period. Its objects are
        deleted in the background."""
        self.api.discard(f"/api/v1/namespaces/{namespace}")
        for pod in self.api.items(f"/api/v1/namespaces/{namespace}/pods"):
            self.api.discard(
                f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}",
                gracePeriodSeconds=0,
            )

    def account(self, namespace: str, name: str) -> Path:
        """Return a kubeconfig for a service account with only the account's own rights. The account
        is made if it does not exist."""
        place = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        with suppress(Refused):
            self.api.create(place, {"metadata": {"name": name}})
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86400},
        }
        token = self.api.create(f"{place}/{name}/token", asked)["status"]["token"]
        return Access(self.access.server, self.access.ca_file, token).kubeconfig(
            self.top / f"{namespace}-{name}.kubeconfig", namespace
        )

    def volume(self, namespace: str, claim: str) -> Path:
        """Return the directory on the host of a claim's volume of the class `network`."""
        found = self.api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
        return self.top / "volumes" / str(found["spec"]["volumeName"])

    def _is_whole(self, machine: Machine) -> bool:
        """Return whether a node accepts pods. Changes that a test made to the Node object are
        removed first."""
        node = self.api.find(f"/api/v1/nodes/{machine.name}")
        if node is None:
            return False
        if node["spec"].get("unschedulable") or any(
            each["key"] == OUT_OF_SERVICE for each in node["spec"].get("taints", ())
        ):
            kept = [
                each for each in node["spec"].get("taints", ()) if each["key"] != OUT_OF_SERVICE
            ]
            self.api.patch(
                f"/api/v1/nodes/{machine.name}", {"spec": {"unschedulable": None, "taints": kept}}
            )
        return machine.is_ready()

    def _is_ready(self) -> bool:
        return self.api.text("/readyz") == "ok"


@contextmanager
def running(nodes: tuple[str, ...] = NODES) -> Iterator[Cluster]:
    """Run a cluster inside the block."""
    cluster = Cluster()
    try:
        yield cluster.start(nodes)
    finally:
        cluster.remove()
