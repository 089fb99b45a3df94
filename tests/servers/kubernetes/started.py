"""One start of a container, as its directory on the machine's disk describes it: made by one node
agent, and perhaps read by the next."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.servers.kubernetes.images import Image

PROGRAM = Path(__file__).with_name("container.py")
MESSAGE = 4096
"""Bytes of a termination message that are kept. For a log in its place: half as many, and 80 lines
(kubelet, pkg/kubelet/kuberuntime)."""


class Started:
    """The start of a container. `place` has `plan.json`, `exit.json`, `log`, `message` and `shim`
    (the process that waits for it)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._child: subprocess.Popen[bytes] | None = None
        self._watched = -1

    def start(self, image: Image, plan: dict[str, Any]) -> None:
        """Start it. Return when the container is on its way."""
        root = self.place / "root"
        for name in {
            "etc",
            "home/perdure",
            "root",
            "tmp",
            "run",
            "var/tmp",
            "data",
            image.directory.lstrip("/"),
        } - {""}:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("home/perdure", "data"):
            os.chown(root / name, image.user, image.group)
        for path, target in image.links.items():
            (root / path.lstrip("/")).symlink_to(target)
        (self.place / "message").touch()
        (self.place / "message").chmod(0o666)
        seen = [
            {"source": source, "target": target, "readonly": True}
            for target, source in image.sees.items()
        ]
        message = {
            "source": str(self.place / "message"),
            "target": plan["message"],
            "readonly": False,
        }
        (self.place / "plan.json").write_text(
            json.dumps({**plan, "mounts": [*seen, *plan["mounts"], message]})
        )
        with (self.place / "log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(PROGRAM), str(self.place)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        new = self.place / "shim.new"
        new.write_text(f"{self._child.pid} {_born(self._child.pid)}")
        new.rename(self.place / "shim")

    def was_started(self) -> bool:
        """Return whether it was started completely. An agent that was killed meanwhile leaves an
        incomplete start, which is ended."""
        if (self.place / "shim").exists():
            return True
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if each.read_bytes().endswith(f"\0{self.place}\0".encode()):
                    os.kill(int(each.parent.name), signal.SIGKILL)
        return False

    def watched(self) -> int:
        """Return a descriptor that can be read when it has ended; -1 if it has."""
        if self._watched < 0 and (pid := self._shim()):
            with suppress(ProcessLookupError):
                self._watched = os.pidfd_open(pid)
        return self._watched

    def is_running(self) -> bool:
        watched = self.watched()
        if watched < 0:
            return False
        ready = select.poll()
        ready.register(watched, select.POLLIN)
        if not ready.poll(0):
            return True
        os.close(watched)
        self._watched = -1
        if self._child is not None:
            self._child.wait()
        return False

    def has_said_all(self) -> bool:
        """Return whether its log is complete; for other threads than the pod's own."""
        return (self.place / "exit.json").exists() or not self.place.exists()

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to its PID 1. With SIGKILL nothing in it is left."""
        while self.is_running():
            try:
                init = int((self.place / "init.pid").read_text())
            except (OSError, ValueError):
                time.sleep(0.01)  # just started
                continue
            with suppress(ProcessLookupError):
                os.kill(init, number)
            return

    def state(self) -> dict[str, Any]:
        """Return `running` or `terminated`, in the form of a container's status."""
        plan = self.plan()
        if self.is_running():
            return {"running": {"startedAt": stamp(plan["asked"])}}
        try:
            ended = json.loads((self.place / "exit.json").read_text())
        except OSError:
            unknown = "The container could not be located when the pod was terminated"
            ended = {
                "code": 137,
                "began": plan["asked"],
                "ended": plan["asked"],
                "trouble": "",
                "oom": False,
                "unknown": unknown,
            }
        reason = (
            "Completed"
            if ended["code"] == 0
            else "OOMKilled"
            if ended["oom"]
            else "StartError"
            if ended["trouble"]
            else "Error"
        )
        reason = "ContainerStatusUnknown" if "unknown" in ended else reason
        times = {"startedAt": stamp(ended["began"]), "finishedAt": stamp(ended["ended"])}
        said = ended.get("unknown") or ended["trouble"] or self._message(ended["code"], plan)
        return {
            "terminated": {
                "exitCode": ended["code"],
                "reason": reason,
                **times,
                **({"message": said} if said else {}),
            }
        }

    def plan(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.place / "plan.json").read_text()))
        except (OSError, ValueError):
            # The agent was killed between making the place and the plan.
            return {"asked": self.place.stat().st_mtime, "fallback": False}

    def _message(self, code: int, plan: dict[str, Any]) -> str:
        with suppress(OSError), (self.place / "message").open("rb") as file:
            if said := file.read(MESSAGE):
                return said.decode(errors="replace")
        if code and plan["fallback"]:
            with suppress(OSError):
                whole = (self.place / "log").read_bytes()[-MESSAGE // 2 :]
                return b"".join(whole.splitlines(keepends=True)[-80:]).decode(errors="replace")
        return ""

    def _shim(self) -> int:
        """Return its pid, if that is still the same process."""
        if self._child is not None:
            return self._child.pid if self._child.returncode is None else 0
        with suppress(OSError, ValueError):
            pid, born = (self.place / "shim").read_text().split()
            if _born(int(pid)) == born:
                return int(pid)
        return 0


def stamp(seconds: float) -> str:
    """Return a time as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _born(pid: int) -> str:
    """Return when a process began, in ticks since the machine's boot (proc(5), field 22)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
