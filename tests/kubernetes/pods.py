"""Pods without a cluster. Each has namespaces of its own for users, mounts, processes and the host
name, with `perdure entrypoint` as its first process.

The state that outlives a pod is the same as in Kubernetes: the directory that is mounted as the
volume (a claim) or a new one in its place (an emptyDir), the checkpoint store, and the termination
message. Each pod has a new home. The agents are the real CLIs with a rehearsal, whose dummy key is
a file of a Secret.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.agents.rehearsal import Rehearsal
from perdure.kubernetes.order import Earlier, Order, ResumeOrder
from perdure.kubernetes.order import encode as written
from perdure.kubernetes.result import AttemptResult, trusted_result
from perdure.model import OutcomeKind, Permissions, TaskSpec
from tests.journeys.stage import native

TOP = Path(__file__).parents[2]
UID = "3f0c8a52-7a4e-4f5e-9a44-0c1de2b7f001"
PROMPT = "Write one.txt. The magic word is quercus."
PATIENCE_S = 180.0
SPACES = [
    "--user",
    "--map-root-user",
    "--mount",
    "--pid",
    "--uts",
    "--fork",
    "--kill-child",
    "--mount-proc",
]
KEYS = {"claude": "ANTHROPIC_API_KEY", "codex": "OPENAI_API_KEY"}


@dataclass
class Ended:
    """A pod that has ended: its exit code, its termination message and its log."""

    code: int
    message: bytes
    log: str
    attempt: int

    @property
    def result(self) -> AttemptResult:
        """Return the pod's result, checked as the operator checks it."""
        found = trusted_result(self.message, self.attempt, self.code)
        assert found is not None, (self.code, self.message, self.log[-3000:])
        return found


class Pod:
    """A running pod. Its first process is `perdure entrypoint`."""

    def __init__(self, started: subprocess.Popen[str], directory: Path, attempt: int) -> None:
        self.started, self.directory, self.attempt = started, directory, attempt

    @property
    def first(self) -> int:
        """Return the process id of the pod's PID 1, as seen from outside."""

        def look() -> int:
            found = (
                Path(f"/proc/{self.started.pid}/task/{self.started.pid}/children")
                .read_text()
                .split()
            )
            return int(found[0]) if found else 0

        return int(until(look, "the pod has a first process"))

    def kill(self) -> Ended:
        """Kill everything in the pod at once, as a power cut does, or the kernel when memory runs
        out. Return the ended pod."""
        os.kill(self.first, signal.SIGKILL)
        return self.end()

    def terminate(self) -> None:
        """Send SIGTERM to the pod's first process, as the kubelet does."""
        os.kill(self.first, signal.SIGTERM)

    def heard(self) -> str:
        """Return the pod's log so far."""
        return (self.directory / "log").read_text(errors="replace")

    def end(self) -> Ended:
        """Wait for the pod's end, and return the ended pod."""
        code = self.started.wait(timeout=PATIENCE_S)
        message = self.directory / "message"
        return Ended(
            code if code >= 0 else 128 - code, message.read_bytes(), self.heard(), self.attempt
        )


@dataclass
class Cluster:
    """Storage that remains when pods end. `mode`: where the state of a run is kept between two
    pods."""

    directory: Path
    agent: str
    rehearsal: Rehearsal
    checkpoints: str = ""
    claim: bool = True
    spec: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    store_secrets: dict[str, str] = field(default_factory=dict)
    repository: dict[str, str] = field(default_factory=dict)
    relay: bool = False
    """Whether each pod has a relay, which is a separate process here."""
    relays: list[subprocess.Popen[bytes]] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)

    @property
    def go(self) -> Path:
        """Return the path that replaces `GO` in a script."""
        return self.directory / "go"

    @property
    def volume(self) -> Path:
        """Return the path of the volume in every pod."""
        return self.directory / "data"

    def order(
        self, attempt: int, texts: dict[int, str] | None = None, **changes: Any
    ) -> tuple[Order, dict[int, str]]:
        texts = texts or {1: PROMPT}
        args = tuple(self.rehearsal.codex_args()) if self.agent == "codex" else ()
        spec = {
            "agent": self.agent,
            "service": "api",
            "task": "t-1",
            "permissions": Permissions.FULL,
            "agent_args": args,
            **self.spec,
        }
        plain: dict[str, Any] = {
            "run": UID, "name": "t-1", "attempt": attempt, "attempts_allowed": 5, "spec": TaskSpec(prompt="", **spec),
            "contexts": tuple(texts),
            "earlier": tuple(Earlier(number=n, outcome=OutcomeKind.LOST, detail="the pod was killed") for n in range(1, attempt)),
            "resume": ResumeOrder(), "checkpoints": self.checkpoints, "state": "volume" if self.claim else "checkpoints",
        }  # fmt: skip
        return Order(**{**plain, **changes}), texts

    def start(
        self,
        attempt: int,
        texts: dict[int, str] | None = None,
        *,
        grace: float = 30.0,
        files: dict[str, bytes] | None = None,
        **changes: Any,
    ) -> Pod:
        """Start the pod of an attempt. `files` replaces the files of the order."""
        place = self.directory / f"pod-{len(self.pods)}"
        for name in (
            "home",
            "t",
            "secrets/credentials",
            "secrets/checkpoints",
            "secrets/repository",
            "data",
        ):
            (place / name).mkdir(parents=True)
        self.volume.mkdir(exist_ok=True)
        order, texts = self.order(attempt, texts, **changes)
        files = files or {
            "order.json": written(order),
            **{f"contexts/{version}": text.encode() for version, text in texts.items()},
        }
        for name, content in files.items():
            file = place / "order" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        environ = self.rehearsal.environ(self.agent)
        (place / "secrets/credentials" / KEYS[self.agent]).write_text(
            environ.pop(KEYS[self.agent]) + "\n"
        )
        # If there is a relay, only its container has these Secrets.
        top = place / ("relay-secrets" if self.relay else "secrets")
        for kind, secrets in (("checkpoints", self.store_secrets), ("repository", self.repository)):
            for name, value in secrets.items():
                (top / kind).mkdir(parents=True, exist_ok=True)
                (top / kind / name).write_text(value)
        (place / "message").touch()
        relay = self.relayed(place)
        work = [
            "work",
            "--run",
            "--order",
            str(place / "order"),
            "--result",
            str(place / "message"),
            "--grace",
            str(grace),
            *relay,
        ]
        entry = [
            sys.executable,
            "-m",
            "perdure",
            "entrypoint",
            "--volume",
            str(self.volume),
            "--agent",
            self.agent,
            "--",
            "perdure",
            *work,
        ]
        data = self.claimed if self.claim else place / "data"
        script = (
            f"hostname pod-{len(self.pods)}; mount --bind {data} {self.volume} && exec "
            f"{shlex.join(entry)}"
        )
        log = (place / "log").open("w")
        started = subprocess.Popen(
            ["unshare", *SPACES, "sh", "-c", script], cwd="/", text=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(place / "home"),
                "TMPDIR": str(place / "t"),
                "LANG": "C.UTF-8", "IS_SANDBOX": "1", "PERDURE_GRACE": "2s", "PERDURE_DISK_BALLAST": "0", "PYTHONPATH": str(TOP / "src"),
                f"PERDURE_{self.agent.upper()}": str(native(self.agent)), "PERDURE_CHECKPOINT_EVERY": "1s", **environ, **self.extra,
            },
        )  # fmt: skip
        log.close()
        self.pods.append(Pod(started, place, attempt))
        return self.pods[-1]

    def relayed(self, place: Path) -> list[str]:
        """Start the relay of a pod, if it has one. Return the option for the agent's container."""
        if not self.relay:
            return []
        at, own = place / "relay", place / "relay-secrets" / "own"
        at.mkdir()
        own.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "perdure", "work", "--as-relay", str(at)]
        command += ["--order", str(place / "order"), "--secrets", str(place / "relay-secrets")]
        with (place / "relay.log").open("w") as log:
            self.relays.append(
                subprocess.Popen(
                    command,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={
                        "PATH": "/usr/bin:/bin",
                        "PYTHONPATH": str(TOP / "src"),
                        "HOME": "/",
                        "TMPDIR": str(own),
                    },
                )
            )
        return ["--relay", str(at)]

    @property
    def claimed(self) -> Path:
        """Return the directory of the claim."""
        path = self.directory / "claim"
        path.mkdir(exist_ok=True)
        return path

    def run(self, attempt: int, texts: dict[int, str] | None = None, **changes: Any) -> Ended:
        """Run a pod to its end, and return the ended pod."""
        return self.start(attempt, texts, **changes).end()

    def file(self, name: str) -> Path:
        """Wait for a file in the task's workdir and return its path. The workdir is in the claim,
        or in the newest pod's own directory."""
        pod = self.pods[-1]
        data = self.claimed if self.claim else pod.directory / "data"

        def look() -> Path | None:
            found = next(iter(data.glob(f"perdure/root/api/.task/t-1/{name}")), None)
            assert found or pod.started.poll() is None, pod.end().log
            return found

        return Path(until(look, f"the agent wrote {name}"))

    def close(self) -> None:
        for pod in self.pods:
            if pod.started.poll() is None:
                with contextlib.suppress(Exception):
                    pod.kill()
            if pod.started.poll() is None:
                pod.started.kill()
            pod.started.wait()
        for relay in self.relays:
            relay.kill()
            relay.wait()


@contextlib.contextmanager
def cluster(directory: Path, agent: str, script: str, **settings: Any) -> Iterator[Cluster]:
    """Make a cluster. At the end of the block all its processes are ended. `GO` in the script
    stands for a file outside of all pods."""
    with Rehearsal(script.replace("GO", str(directory / "go"))) as rehearsal:
        made = Cluster(directory, agent, rehearsal, **settings)
        try:
            yield made
        finally:
            made.close()
            shutil.rmtree(directory, ignore_errors=True)


def until(met: Callable[[], Any], what: str) -> Any:
    """Wait until the condition returns a true value, and return that value."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if value := met():
                return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")


def prompts(one: Cluster) -> Sequence[str]:
    return one.rehearsal.prompts()
