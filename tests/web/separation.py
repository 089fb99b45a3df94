"""A `perdure serve` with `run_as`, on a machine in miniature: with files of root, and files that
agents may use."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.journeys.stage import TOP, native
from tests.patience import PATIENCE_S
from tests.web.serving import Serving

USER, GROUP = 61234, 61236
"""A user id and a group id without an account on any machine."""


def visible() -> list[str]:
    """Return the beginning of a command that runs a program in a mount namespace. In it every
    account can reach this Python, the checkout and the agents, even if they are in a directory that
    only root may enter."""
    needed = {Path(sys.base_prefix).resolve(), TOP.resolve(), native("claude").resolve().parent}
    lines = ["mount --make-rprivate /"]
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        for above in reversed(path.parents):
            if not above.stat().st_mode & 0o001:
                closed.setdefault(above, []).append(path)
                break
    for number, (above, paths) in enumerate(sorted(closed.items())):
        aside = f"/tmp/.visible-{number}"
        lines += [f"mkdir -p {aside}", f"mount -t tmpfs -o mode=0755 none {aside}"]
        for place, path in enumerate(paths):
            lines += [
                f"mkdir {aside}/{place}",
                f"mount --rbind {shlex.quote(str(path))} {aside}/{place}",
            ]
        lines.append(f"mount -t tmpfs -o mode=0755 none {shlex.quote(str(above))}")
        for place, path in enumerate(paths):
            quoted = shlex.quote(str(path))
            lines += [f"mkdir -p {quoted}", f"mount --rbind {aside}/{place} {quoted}"]
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh"]


class Separated(Serving):
    """The service. `agents` is the home of the account under which agents run."""

    def __init__(self, directory: Path, config: str, **environ: str) -> None:
        directory.chmod(0o755)
        service, self.agents = directory / "service", directory / "agents"
        for path in (service, self.agents, directory / "t"):
            path.mkdir()
        super().__init__(
            service,
            config,
            **environ,
            HOME=str(self.agents),
            XDG_CONFIG_HOME=str(service / ".config"),
            PERDURE_STATE=str(directory / "state"),
            PERDURE_ROOT=str(self.agents / "root"),
            TMPDIR=str(directory / "t"),
        )
        self.state = directory / "state"
        self.inside = visible()
        for path in (service, *service.rglob("*")):
            os.chown(path, 0, GROUP)
            path.chmod(0o750 if path.is_dir() else 0o640)
        for path in (self.agents, directory / "t"):
            os.chown(path, USER, USER)

    def perdure(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root, as an administrator would."""
        return subprocess.run(
            [*self.inside, sys.executable, "-m", "perdure", *words],
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def show(self, name: str) -> dict[str, Any]:
        done = self.perdure("show", name, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def processes(self) -> Iterator[int]:
        """Yield the process ids of the agents' user: perdure, shims, agents and their children."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                status = (entry / "status").read_text()
            except OSError:
                continue
            if f"\nUid:\t{USER}\t" in status and "\nState:\tZ" not in status:
                yield int(entry.name)

    def kill_all(self) -> None:
        """Kill everything at once, as a power cut does."""
        self.kill()
        while alive := list(self.processes()):
            for pid in alive:
                subprocess.run(["kill", f"-{signal.SIGKILL:d}", str(pid)], check=False)
