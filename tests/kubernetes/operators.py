"""The operator as a child process of the test, run as the manifests run it: with their arguments,
and under the account that they create.

Its rights are read from `packaging/kubernetes/perdure.yaml` and created in the test's namespace. So
a right that is missing in that file is missing here as well. The operator can be killed and started
again at any moment, and two can run at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import yaml

from tests.servers.kubernetes.api import Refused
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.images import PERDURE
from tests.servers.ports import free_port

TOP = Path(__file__).parents[2]
SOURCE, PACKAGING = TOP / "src", TOP / "packaging"
MANIFESTS = PACKAGING / "kubernetes" / "perdure.yaml"
RESOURCE = PACKAGING / "helm" / "perdure" / "crds" / "taskruns.yaml"
GROUPS = {
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Role": ("", "roles"),
    "RoleBinding": ("", "rolebindings"),
}
RBAC = "/apis/rbac.authorization.k8s.io/v1"
NAME = "perdure"


@cache
def manifests() -> tuple[dict[str, Any], ...]:
    """Return the chart's objects, as users get them."""
    return tuple(each for each in yaml.safe_load_all(MANIFESTS.read_text()) if each)


def arguments() -> list[str]:
    """Return the arguments that the Deployment passes to the operator."""
    deployment = next(each for each in manifests() if each["kind"] == "Deployment")
    return [str(each) for each in deployment["spec"]["template"]["spec"]["containers"][0]["args"]]


def install(cluster: Cluster) -> None:
    """Install the TaskRun resource, and wait until the API server serves it."""
    body = yaml.safe_load(RESOURCE.read_text())
    place = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    if cluster.api.find(f"{place}/{body['metadata']['name']}") is None:
        cluster.api.create(place, body)
    cluster.until(
        lambda: cluster.api.find("/apis/perdure.dev/v1alpha1/taskruns"), "TaskRuns are served"
    )


def grant(cluster: Cluster, namespace: str) -> None:
    """Create the accounts and rights of the manifests in a namespace, and no others."""
    for each in manifests():
        if each["kind"] not in GROUPS or each["metadata"].get("namespace") != NAME:
            continue
        top, plural = GROUPS[each["kind"]]
        body = {**each, "metadata": {"name": each["metadata"]["name"]}}
        if each["kind"] == "RoleBinding":
            body["subjects"] = [{**subject, "namespace": namespace} for subject in each["subjects"]]
        with suppress(Refused):
            cluster.api.create(f"{top or RBAC}/namespaces/{namespace}/{plural}", body)


class Operator:
    """`perdure operator` for one namespace. `via` is another address for the API server: a proxy
    with faults."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        *,
        via: str = "",
        name: str = "operator",
        more: tuple[str, ...] = (),
    ) -> None:
        self.cluster, self.namespace, self.more = cluster, namespace, more
        self.log = cluster.top / f"{name}-{namespace}.log"
        grant(cluster, namespace)
        self.kubeconfig = cluster.account(namespace, NAME)
        if via:
            path = cluster.top / f"{name}-{namespace}.kubeconfig"
            path.write_text(self.kubeconfig.read_text().replace(cluster.access.server, via))
            self.kubeconfig = path
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Operator:
        self.port = free_port()
        own = [f"--namespace={self.namespace}", f"--port={self.port}", f"--image={PERDURE}"]
        theirs = [
            each
            for each in arguments()
            if not each.startswith(("--namespace", "--port", "--image"))
        ]
        home = self.cluster.top / "operator-home"
        home.mkdir(exist_ok=True)
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "KUBECONFIG": str(self.kubeconfig),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(SOURCE),
        }
        with self.log.open("ab") as log:
            command = [
                "setpriv",
                "--pdeathsig=KILL",
                sys.executable,
                "-m",
                "perdure",
                "operator",
                *own,
                *theirs,
                *self.more,
            ]
            self.process = subprocess.Popen(
                command, cwd=home, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def kill(self) -> None:
        """Send SIGKILL to the operator, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """Send SIGTERM to the operator, and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(60)
        self.process = None
        return code

    def is_there(self) -> None:
        """Fail if the operator has ended by itself."""
        process = self.process
        assert process is None or process.poll() in (None, -9), f"the operator ended\n{self.said()}"

    def ready(self) -> None:
        """Wait until the operator reports that it watches."""
        self.cluster.until(
            lambda: httpx2.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).is_success,
            "the operator is ready",
        )

    def memory_mb(self) -> float:
        """Return the operator's memory, in MB."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def cpu_s(self) -> float:
        """Return the CPU time that the operator has used, in seconds."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def said(self) -> str:
        """Return the end of the operator's log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def __enter__(self) -> Operator:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
