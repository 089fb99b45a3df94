"""A machine of the cluster: PID and mount namespaces with a PID 1 that does nothing. The node agent
and all containers run inside.

When its PID 1 is killed, the kernel kills everything in the machine at once, and only its disk is
left, as after a power cut. The node agent alone can also be killed, suspended and started again
(`partition`): its containers continue, and the control plane gets no news of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.servers.kubernetes.api import Access, Api

TOP = Path(__file__).parents[3]


@dataclass(frozen=True)
class Process:
    """A process of a pod, by its process id on the host."""

    pid: int
    command: str

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Machine:
    """A machine. `disk` is visible only inside of it and survives `kill`."""

    def __init__(self, name: str, top: Path, api: Api, access: Access) -> None:
        self.name = name
        self.top = top
        self.directory = top / "machines" / name
        self.disk = self.directory / "disk"
        self.disk.mkdir(parents=True)
        self._api = api
        self._machine: subprocess.Popen[bytes] | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        settings = {**asdict(access), "network": str(top / "volumes"), "key": str(top / "key.pem")}
        (self.directory / "node.json").write_text(json.dumps(settings, default=str))
        (self.directory / "node.json").chmod(0o600)

    # --- its life
    # ------------------------------------------------------------------------------------------------

    def start(self) -> Machine:
        """Switch the machine on, with its node agent, and return this object. `is_ready` then
        returns whether the cluster accepts it as a node."""
        if self._machine is None:
            self._machine = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc",
                 # A PID 1 that ignores SIGCHLD leaves no zombies.
                 "sh", "-c", "trap '' CHLD; exec sleep infinity"],
                stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self._until_it_sleeps()
        self.heal()
        return self

    def kill(self) -> None:
        """Cut the power. No process of the machine is left when this returns. `start` switches it
        on again."""
        if self._machine is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._child(self._machine), signal.SIGKILL)
        # It ends only after everything in its namespace has ended.
        self._machine.wait()
        self._machine = None
        self._forget_agent()

    def partition(self) -> None:
        """Kill the node agent. Its containers continue. `heal` starts a node agent that finds
        them."""
        if self._agent is not None:
            with suppress(ProcessLookupError):
                os.kill(self._child(self._agent), signal.SIGKILL)
            self._forget_agent()

    def heal(self) -> None:
        """Start the node agent on a machine that is on."""
        assert self._machine is not None, f"{self.name} is off"
        if self._agent is None:
            with (self.top / f"{self.name}.log").open("ab") as log:
                self._agent = subprocess.Popen(
                    ["nsenter", "--target", str(self._child(self._machine)), "--pid", "--mount", "--wd=" + str(TOP),
                     sys.executable, "-m", "tests.servers.kubernetes.node", self.name, str(self.directory)],
                    cwd=TOP, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip

    def freeze(self) -> None:
        """Suspend the node agent. Its containers continue to run."""
        assert self._agent is not None
        os.kill(self._child(self._agent), signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._agent is not None
        os.kill(self._child(self._agent), signal.SIGCONT)
        # nsenter stops itself when its child is stopped, so both must be continued.
        self._agent.send_signal(signal.SIGCONT)

    def is_ready(self) -> bool:
        """Return whether the cluster has the machine as a node that accepts pods."""
        node = self._api.find(f"/api/v1/nodes/{self.name}")
        if node is None:
            return False
        ready = any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in node["status"].get("conditions", ())
        )
        return ready and not node["spec"].get("taints") and not node["spec"].get("unschedulable")

    # --- what runs on it
    # -----------------------------------------------------------------------------------------

    def processes(self, uid: str, container: str = "") -> list[Process]:
        """Return the processes of a pod, the first process of each container first. The list is
        empty if the pod does not run here."""
        found = []
        for place in sorted(
            (self.directory / "pods" / uid / "containers").glob(f"{container or '*'}/*/init.pid")
        ):
            init = self._on_host(int(place.read_text()))
            if init:
                found += _of_namespace(init)
        return found

    def _on_host(self, inner: int) -> int:
        """Return the host's process id of a process whose id on the machine is given, or 0 if it
        has ended."""
        assert self._machine is not None, f"{self.name} is off"
        own = _namespace(self._child(self._machine))
        for pid, numbers in _numbers():
            if len(numbers) >= 3 and numbers[-1] == 1 and numbers[-2] == inner:
                with suppress(OSError, ValueError):
                    parent = int(
                        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                    )
                    if _namespace(parent) == own:
                        return pid
        return 0

    def _until_it_sleeps(self) -> None:
        assert self._machine is not None
        while self._machine.poll() is None:
            with suppress(OSError, AssertionError):
                if Path(f"/proc/{self._child(self._machine)}/comm").read_text() == "sleep\n":
                    return
            time.sleep(0.01)
        raise AssertionError("no namespaces: the tests on Kubernetes run as root")

    def _child(self, parent: subprocess.Popen[bytes]) -> int:
        """Return the process id of the process that `unshare` or `nsenter` has started and waits
        for."""
        while parent.poll() is None:
            if found := Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split():
                return int(found[0])
            time.sleep(0.01)
        raise AssertionError(f"{self.name} ended")

    def _forget_agent(self) -> None:
        if self._agent is not None:
            # While nsenter is stopped together with its child, it does not notice the child's end.
            self._agent.send_signal(signal.SIGCONT)
            self._agent.wait()
            self._agent = None


def _of_namespace(init: int) -> list[Process]:
    own = _namespace(init)
    found = []
    for pid, numbers in _numbers():
        with suppress(OSError):
            if len(numbers) >= 3 and _namespace(pid) == own:
                words = (
                    Path(f"/proc/{pid}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                    .strip()
                )
                found.append((numbers[-1], Process(pid, words)))
    return [each for _, each in sorted(found, key=lambda one: one[0])]


def _numbers() -> Iterator[tuple[int, list[int]]]:
    """Yield every process with its process ids, from the host's to that of the innermost
    namespace."""
    for place in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            line = next(
                (
                    each
                    for each in place.read_text(errors="replace").splitlines()
                    if each.startswith("NSpid:")
                ),
                "NSpid: 0",
            )
            yield int(place.parent.name), [int(each) for each in line.split()[1:]]


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())
