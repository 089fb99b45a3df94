"""A real `perdure operator` as a process, and TaskRuns with scripted pods for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.kubernetes.resource import place
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.images import SCRIPTED


class Operator:
    """An operator as a context manager: inside the block it runs and answers its probes. `log` is
    its output."""

    def __init__(self, kubeconfig: Path, log: Path, *arguments: str, image: str = SCRIPTED) -> None:
        self.kubeconfig, self.log, self.arguments, self.image = kubeconfig, log, arguments, image
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Operator:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def start(self) -> Operator:
        command = [
            sys.executable,
            "-m",
            "perdure",
            "operator",
            "--port",
            "0",
            "--image",
            self.image,
            *self.arguments,
        ]
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.log.parent),
            "KUBECONFIG": str(self.kubeconfig),
        }
        before = len(self.said)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ
            )
        while not (found := re.search(r"on port (\d+)", self.said[before:])):
            assert self.process.poll() is None, self.said[before:]
            time.sleep(0.05)
        self.port = int(found[1])
        while self.ask("/readyz")[0] != 200:
            assert self.process.poll() is None, self.said[before:]
            time.sleep(0.05)
        return self

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=20
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Send SIGTERM to the operator. Return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def memory_mb(self) -> float:
        assert self.process is not None
        words = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", words)[1]) / 1024  # type: ignore[index]


class Runs:
    """The TaskRuns of one namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace, self.at = cluster, namespace, place(namespace)

    def make(self, name: str, prompt: str | None = "works 0", **spec: Any) -> dict[str, Any]:
        body = {
            "apiVersion": "perdure.dev/v1alpha1", "kind": "TaskRun", "metadata": {"name": name},
            "spec": {
                "service": "shop", "task": name, "workspace": {"mode": "Claim", "size": "1Gi"},
                **({"prompt": prompt} if prompt else {}), **spec,
            },
        }  # fmt: skip
        return self.cluster.api.create(self.at, body)

    def get(self, name: str) -> dict[str, Any]:
        return self.cluster.api.get(f"{self.at}/{name}")

    def status(self, name: str) -> dict[str, Any]:
        return self.get(name).get("status") or {}

    def phase(self, name: str, *phases: str) -> dict[str, Any]:
        """Wait until the TaskRun is in one of these phases, and return its status."""
        return self.cluster.until(
            lambda: (now := self.status(name)).get("phase") in phases and now,
            f"{name} is {' or '.join(phases)}",
        )

    def patch(self, name: str, **body: Any) -> dict[str, Any]:
        return self.cluster.api.patch(f"{self.at}/{name}", body)

    def condition(self, name: str, kind: str) -> dict[str, Any] | None:
        found = [
            each
            for each in self.status(name).get("conditions", [])
            if each["type"] == kind and each["status"] == "True"
        ]
        return found[0] if found else None

    def jobs(self, name: str) -> list[dict[str, Any]]:
        uid = self.get(name)["metadata"]["uid"]
        return [each for each in self.cluster.api.items(f"/apis/batch/v1/namespaces/{self.namespace}/jobs")
                if each["metadata"]["labels"].get("perdure.dev/taskrun-uid") == uid]  # fmt: skip
