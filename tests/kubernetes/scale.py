"""1,000 TaskRuns, 100 of them at once, on a real control plane whose pods are played by kwok: `make
kubernetes-scale`.

No agent runs, because the subject is the operator. It is measured by the API server's audit log,
which has every request of the operator's account, and by the operator's process. Requirements: each
TaskRun has the end that its pods were given, with exactly the attempts that this needs. Every
attempt has one Job. The operator's memory stays flat and under 200 MB. An attempt takes less than
25 requests. The median time from the acceptance of a TaskRun to the request that makes its Job is
less than 250 ms.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.kubernetes.operators import Operator, install
from tests.kubernetes.place import KIND
from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.build import program
from tests.servers.kubernetes.cluster import Cluster

STAGES = Path(__file__).parent / "stages.yaml"
ENDS = {
    "works": ("Succeeded", 1),
    "again": ("Succeeded", 2),
    "never": ("Failed", 2),
    "lost": ("Succeeded", 2),
}
"""The possible ends of a TaskRun with a limit of two attempts, and the number of attempts that each
takes."""
SHARE = ("works",) * 6 + ("again",) * 2 + ("never", "lost")
MOST_MB, MOST_REQUESTS, MOST_SHARE_MS, FLAT = 200.0, 25.0, 250.0, 0.10
ALONE = 20
WARM_UP = 0.2
"""Share of the runs after which the median of the memory is taken. The memory's growth is measured
from that value."""


@dataclass
class Measured:
    """The measurements. Times are in milliseconds, memory is in MB."""

    number: int
    at_once: int
    seconds: float = 0.0
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    """The same times for TaskRuns that were created alone, before all others."""
    requests: collections.Counter[str] = field(default_factory=collections.Counter)
    memory: list[tuple[int, float]] = field(default_factory=list)
    """Number of TaskRuns that had ended, and the operator's memory at that time."""
    cpu_s: float = 0.0
    """CPU time that the operator has used since its start, in seconds."""
    load: float = 0.0

    def settled_memory(self) -> list[float]:
        return [mb for ended, mb in self.memory if ended >= self.number * WARM_UP] or [
            mb for _, mb in self.memory
        ]

    def rows(self) -> list[tuple[str, str, str, bool]]:
        """Return name, value, goal, and whether the goal is met, for each measurement."""
        memory = self.settled_memory()
        middle = statistics.median(memory)
        drift = max(abs(mb - middle) for mb in memory) / middle
        each = sum(self.requests.values()) / max(self.attempts, 1)
        share, alone = statistics.median(self.shares), statistics.median(self.alone)
        return [
            (
                f"TaskRuns, {self.at_once} at once",
                f"{self.number} ({self.attempts} attempts) in {self.seconds:.0f} s",
                "",
                True,
            ),
            ("missed or doubled attempts", str(len(self.wrong)), "0", not self.wrong),
            (
                "API requests an attempt",
                f"{each:.1f}",
                f"< {MOST_REQUESTS:.0f}",
                each < MOST_REQUESTS,
            ),
            (
                "the operator's memory, most",
                f"{max(memory):.0f} MB",
                f"< {MOST_MB:.0f} MB",
                max(memory) < MOST_MB,
            ),
            ("the same, most off its median", f"{drift:.1%}", f"<= {FLAT:.0%}", drift <= FLAT),
            (
                "TaskRun to Job, median, one after the other",
                f"{alone:.0f} ms",
                f"< {MOST_SHARE_MS:.0f} ms",
                alone < MOST_SHARE_MS,
            ),
            (
                "the operator's own CPU time an attempt",
                f"{1000 * self.cpu_s / max(self.attempts, 1):.0f} ms",
                "",
                True,
            ),
            (f"TaskRun to Job, median, {self.at_once} at once", f"{share:.0f} ms", "", True),
            (
                "the same, 95 of 100",
                f"{statistics.quantiles(self.shares, n=20)[-1]:.0f} ms",
                "",
                True,
            ),
        ]


class Scene:
    """A namespace, its operator, and the end of every TaskRun in it."""

    def __init__(self, cluster: Cluster, namespace: str, operator: Operator) -> None:
        self.cluster, self.namespace, self.operator = cluster, namespace, operator
        self.path = f"/apis/perdure.dev/v1alpha1/namespaces/{namespace}/taskruns"
        self.phases: dict[str, str] = {}
        self.accepted: dict[str, float] = {}
        """Time at which the API server's answer to the creation arrived (seconds since 1970), by
        name."""
        self.changed = threading.Condition()
        self.ended = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for _, each in self.cluster.api.watch(self.path, self.ended):
            with self.changed:
                self.phases[each["metadata"]["name"]] = (each.get("status") or {}).get("phase", "")
                self.changed.notify_all()

    def over(self) -> int:
        return sum(phase in ("Succeeded", "Failed") for phase in self.phases.values())

    def wait(self, number: int, patience_s: float = 600.0) -> None:
        """Wait until this number of TaskRuns have ended."""
        with self.changed:
            met = self.changed.wait_for(lambda: self.over() >= number, patience_s)
        assert met, f"{self.over()} of {number} ended\n{self.operator.said()}"

    def begun(self, name: str, patience_s: float = 600.0) -> None:
        """Wait until the TaskRun's status names its Job."""
        with self.changed:
            assert self.changed.wait_for(
                lambda: self.phases.get(name) not in (None, "", "Pending"), patience_s
            ), self.operator.said()

    def make(self, name: str, trial: str) -> None:
        spec: Object = {
            "service": "shop",
            "task": name,
            "prompt": "Do it.",
            "policy": {"attempts": 2},
            "workspace": {"mode": "Checkpoints", "checkpoints": "s3://tasks"},
            "pod": {"image": "perdure:test", "labels": {"trial": trial}},
        }
        self.cluster.api.create(self.path, {**KIND, "metadata": {"name": name}, "spec": spec})
        self.accepted[name] = time.time()


def measure(number: int, at_once: int) -> Measured:
    """Measure everything on a new cluster, with this number of TaskRuns."""
    seen = Measured(number, at_once)
    with _cluster() as cluster:
        namespace = cluster.namespace()
        with Operator(cluster, namespace) as operator:
            scene = Scene(cluster, namespace, operator)
            operator.ready()
            for at in range(ALONE):
                scene.make(f"alone-{at}", "works")
                scene.begun(f"alone-{at}")
            scene.wait(ALONE)
            began = time.monotonic()
            watching = threading.Thread(target=_memory, args=(operator, scene, seen), daemon=True)
            watching.start()
            _play(scene, seen)
            seen.seconds = time.monotonic() - began
            seen.load, seen.cpu_s = os.getloadavg()[0], operator.cpu_s()
            scene.ended.set()
            watching.join()
            _judge(scene, seen)
            _count(scene, seen)
    return seen


def _play(scene: Scene, seen: Measured) -> None:
    for at in range(seen.number):
        scene.wait(ALONE + at - seen.at_once)
        scene.make(f"run-{at}", SHARE[at % len(SHARE)])
    scene.wait(ALONE + seen.number)


def _memory(operator: Operator, scene: Scene, seen: Measured) -> None:
    while not scene.ended.wait(0.5):
        with suppress(OSError):
            seen.memory.append((scene.over(), operator.memory_mb()))


def _judge(scene: Scene, seen: Measured) -> None:
    jobs = collections.Counter(
        (
            job["metadata"]["ownerReferences"][0]["name"],
            int(job["metadata"]["labels"]["perdure.dev/attempt"]),
        )
        for job in scene.cluster.api.items(f"/apis/batch/v1/namespaces/{scene.namespace}/jobs")
    )
    for body in scene.cluster.api.items(scene.path):
        name, status = body["metadata"]["name"], body["status"]
        phase, expected = ENDS[
            "works"
            if name.startswith("alone")
            else SHARE[int(name.removeprefix("run-")) % len(SHARE)]
        ]
        numbers = [each["number"] for each in status["attempts"] if each.get("outcome")]
        seen.attempts += len(numbers)
        if status["phase"] != phase or numbers != list(range(1, expected + 1)):
            seen.wrong.append(
                f"{name} is {status['phase']} after {numbers}, and should be {phase} after "
                f"{expected}"
            )
        made = {attempt: count for (owner, attempt), count in jobs.items() if owner == name}
        if made != dict.fromkeys(numbers, 1):
            seen.wrong.append(f"{name} has Jobs {made} for attempts {numbers}")


def _count(scene: Scene, seen: Measured) -> None:
    """Count the operator's requests in the audit log, and record when each first Job was
    requested."""
    user = f"system:serviceaccount:{scene.namespace}:perdure"
    asked: dict[str, float] = {}
    done: set[str] = set()
    for line in scene.cluster.plan.audit.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] != user or event["auditID"] in done:
            continue
        done.add(event["auditID"])
        kind = event.get("objectRef", {})
        what = "/".join(
            filter(
                None,
                (
                    kind.get("resource", event["requestURI"].partition("?")[0]),
                    kind.get("subresource"),
                ),
            )
        )
        seen.requests[f"{event['verb']} {what}"] += 1
        if (
            event["verb"] == "create"
            and kind.get("resource") == "jobs"
            and kind.get("name", "").endswith("-1")
        ):
            asked.setdefault(
                _owner(kind["name"]),
                datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
            )
    for name, at in scene.accepted.items():
        if name in asked:
            (seen.alone if name.startswith("alone") else seen.shares).append(
                1000 * (asked[name] - at)
            )


def _owner(job: str) -> str:
    """Return the name of the TaskRun from the name of its Job: NAME-HASH-ATTEMPT."""
    return job.rsplit("-", 2)[0]


@contextmanager
def _cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    kwok: subprocess.Popen[bytes] | None = None
    try:
        cluster.start(())
        install(cluster)
        with (cluster.top / "kwok.log").open("ab") as log:
            kubeconfig = cluster.plan.access("node-kwok").kubeconfig(
                cluster.top / "kwok.kubeconfig"
            )
            words = [
                "--manage-all-nodes=true",
                "--node-lease-duration-seconds=12",
                "--node-port=0",
                "--cidr=10.0.0.1/16",
            ]
            command = [
                str(program("kwok")),
                f"--kubeconfig={kubeconfig}",
                f"--config={STAGES}",
                *words,
            ]
            environ: dict[str, Any] = {"HOME": str(cluster.top), "PATH": os.environ["PATH"]}
            kwok = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command],
                env=environ,
                stdout=log,
                stderr=log,
                cwd=cluster.top,
            )
        for name in ("one", "two"):
            cluster.api.create(
                "/api/v1/nodes",
                {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}},
            )
        yield cluster
    finally:
        if kwok is not None:
            kwok.kill()
            kwok.wait()
        cluster.remove()


def table(seen: Measured) -> str:
    rows = seen.rows()
    lines = [
        f"{what:<48} {much:<34} {goal:<10} {'' if met else 'MISSED'}".rstrip()
        for what, much, goal, met in rows
    ]
    lines.append(f"\nload of the machine at the end: {seen.load:.1f} on {os.cpu_count()} cores")
    lines.append(
        "requests an attempt: "
        + ", ".join(
            f"{what} {count / max(seen.attempts, 1):.2f}"
            for what, count in seen.requests.most_common()
        )
    )
    return "\n".join([*lines, *seen.wrong])


def main() -> int:
    parser = argparse.ArgumentParser(prog="scale", description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=1000)
    parser.add_argument("--at-once", type=int, default=100)
    arguments = parser.parse_args()
    seen = measure(arguments.number, arguments.at_once)
    print(table(seen))
    return 0 if all(met for *_, met in seen.rows()) else 1


if __name__ == "__main__":
    sys.exit(main())
