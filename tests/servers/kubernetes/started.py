"""One start of a container, as its directory on the machine's disk describes it. One node agent
makes the directory, and perhaps the next one reads it."""

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
"""Maximum length of a termination message, in bytes. A log that replaces a message has half as many
bytes, and at most 80 lines (kubelet, pkg/kubelet/kuberuntime)."""


class Started:
    """The start of a container. `place` has `plan.json`, `exit.json`, `log`, `message` and `shim`
    (the id of the process that waits for it)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._child: subprocess.Popen[bytes] | None = None
        self._watched = -1

    def start(self, image: Image, plan: dict[str, Any]) -> None:
        """Start the container, and return when its process has begun."""
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
        """Return whether the container was started completely. A node agent that is killed during
        the start leaves an incomplete start, which the next agent ends."""
        if (self.place / "shim").exists():
            return True
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if each.read_bytes().endswith(f"\0{self.place}\0".encode()):
                    os.kill(int(each.parent.name), signal.SIGKILL)
        return False

    def watched(self) -> int:
        """Return a descriptor that becomes readable when the container ends, or -1 if it has
        ended."""
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
        """Return whether the container's log is complete. Other threads than the pod's own use
        this."""
        return (self.place / "exit.json").exists() or not self.place.exists()

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the container's PID 1. After SIGKILL no process of the container is
        left."""
        while self.is_running():
            try:
                init = int((self.place / "init.pid").read_text())
            except (OSError, ValueError):
                time.sleep(0.01)  # the container has just been started
                continue
            with suppress(ProcessLookupError):
                os.kill(init, number)
            return

    def state(self) -> dict[str, Any]:
        """Return the container's state, `running` or `terminated`, in the form of a status."""
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
            # The node agent was killed after it made the directory and before it wrote the plan.
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
        """Return the shim's process id if it is still the same process, else 0."""
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
