"""A container of the built image, as an engine would run it: its own namespaces, the image as its
root, the volume, and the image's own entry point as process 1.

No engine is needed: buildah mounts the image, unshare makes the namespaces, and nsenter does the
work of `docker exec`. The container uses the machine's network, so it can reach the tests' servers
on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S
from tests.servers.image.build import NAME, buildah

NAMESPACES = ("--mount", "--pid", "--ipc", "--uts")


def configuration(name: str = NAME) -> dict[str, Any]:
    """Return an image's configuration: Entrypoint, Cmd, Env, User, WorkingDir, Labels, StopSignal."""
    found: dict[str, Any] = json.loads(buildah("inspect", "--type=image", name))["OCIv1"]["config"]
    return found


@dataclass
class ImageContainer:
    """One container. `volume` is mounted at /data, `mounts` are further directories by their path
    inside, `environ` has the variables of `docker run -e`, and `as_user` the user of `docker run
    -u`."""

    volume: Path
    log: Path
    environ: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, Path] = field(default_factory=dict)
    of: str = NAME
    as_user: str = ""

    def __post_init__(self) -> None:
        self.image = configuration(self.of)
        self.user, _, self.group = (self.as_user or self.image["User"]).partition(":")
        self.name = buildah("from", "--pull-never", self.of).strip()
        self.root = Path(buildah("mount", self.name).strip())
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *command: str) -> ImageContainer:
        """Start the image's entry point with this command, or with the image's own. Return this
        object."""
        lines = [
            *self._mount(),
            shlex.join(
                [
                    *("exec", "chroot", f"--userspec={self.user}:{self.group}", "--groups="),
                    str(self.root),
                    *self._command(self.image["WorkingDir"]),
                    *self.image["Entrypoint"],
                    *(command or self.image.get("Cmd", ())),
                ]
            ),
        ]
        unshare = ["unshare", *NAMESPACES, "--propagation=private", "--fork"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*unshare, "sh", "-ec", "\n".join(lines)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.wait(self._is_entered, "the container has the image as its root")
        return self

    def _is_entered(self) -> bool:
        return [str(self.root)] == [
            str(Path(f"/proc/{pid}/root").readlink()) for pid in self._children()
        ]

    def _mount(self) -> list[str]:
        root = shlex.quote(str(self.root))
        lines = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        for place, source in {"/data": self.volume, **self.mounts}.items():
            target = f"{root}{shlex.quote(place)}"
            make = "mkdir -p" if source.is_dir() else "touch"
            lines.append(f"mkdir -p $(dirname {target}); {make} {target}")
            lines.append(f"mount --bind {shlex.quote(str(source))} {target}")
        return lines

    def _command(self, directory: str) -> list[str]:
        """Return a command that runs a program in this directory, with only the container's
        environment."""
        variables = [*self.image["Env"], *(f"{name}={v}" for name, v in self.environ.items())]
        return ["/usr/bin/env", "-i", f"--chdir={directory}", *variables]

    def execute(
        self, *command: str, directory: str = "", given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the running container, as `docker exec --interactive` does."""
        enter = ["nsenter", f"--target={self.first}", *NAMESPACES, "--root"]
        user = [f"--setgid={self.group}", f"--setuid={self.user}"]
        return subprocess.run(
            [*enter, *user, *self._command(directory or self.image["WorkingDir"]), *command],
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    @property
    def first(self) -> int:
        """Return the process id that the container's process 1 has on the machine."""
        (child,) = self._children()
        return int(child)

    def _children(self) -> list[str]:
        assert self.process is not None
        pid = self.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def wait(self, met: Callable[[], Any], what: str) -> Any:
        """Wait until the condition returns a true value, and return that value. Fail with the log
        if the container ends before."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := met():
                return found
            alive = self.process is not None and self.process.poll() is None
            assert alive, f"it ended: {self.said()}"
            time.sleep(0.05)
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}\n{self.said()}")

    def said(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        """Stop the container as `docker stop` does. Return its exit code."""
        assert self.process is not None
        number = getattr(signal, self.image.get("StopSignal", "SIGTERM"))
        os.kill(self.first, number)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def kill(self) -> None:
        """Kill all processes of the container at once: when process 1 is killed, the kernel ends
        the others. `--kill-child` is not enough, because that signal is forgotten when process 1
        changes its user."""
        if self.process is not None:
            if self.process.poll() is None:
                os.kill(self.first, signal.SIGKILL)
            self.process.wait(PATIENCE_S)
            self.process = None

    def remove(self) -> None:
        """Kill the container, and delete everything that it wrote outside of its volume."""
        self.kill()
        buildah("umount", self.name)
        buildah("rm", self.name)
