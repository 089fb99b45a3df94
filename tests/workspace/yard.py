"""A scratch environment for workdirs: a home, a repository with two commits, a root, and git as its
user runs it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from perdure.model import TaskSpec, Workspace
from perdure.workspace import Workspaces
from tests.spread import apart

BACKENDS = ("worktree", "isolated", "task", "here")
REPOSITORIES = ("worktree", "isolated")


@dataclass(frozen=True)
class Yard:
    top: Path

    @property
    def repo(self) -> Path:
        return self.top / "repo"

    @property
    def root(self) -> Path:
        return self.top / "root"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.top / "home"),
            "TMPDIR": str(self.top / "tmp"),
        }

    @property
    def workspaces(self) -> Workspaces:
        return Workspaces(self.root, environ=self.environ)

    def git(
        self,
        *args: str,
        cwd: Path | str | None = None,
        check: bool = True,
        env: dict[str, str] | None = None,
    ) -> str:
        """Run git as the user or an agent does, without perdure's protections. Return its
        output."""
        done = subprocess.run(
            ["git", *args],
            cwd=cwd or self.repo,
            env=self.environ | (env or {}),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def complaint(self, *args: str, cwd: Path | str | None = None) -> str:
        """Return git's message if it fails, or an empty string if it succeeds."""
        done = subprocess.run(
            ["git", *args],
            cwd=cwd or self.repo,
            env=self.environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stderr.strip() if done.returncode else ""

    def spec(self, backend: str, **more: str) -> TaskSpec:
        """Return a spec that selects the backend, with `more` of its fields."""
        if backend == "task":
            return TaskSpec(prompt="p", **({"service": "shop", "task": "t1"} | more))
        if backend == "here":
            return TaskSpec(
                prompt="p",
                here=str(self.top / "plain"),
                **{k: v for k, v in more.items() if k == "agent"},
            )
        return TaskSpec(
            prompt="p", **({"repo": str(self.repo), "backend": backend, "branch": "work"} | more)
        )

    def plan(self, backend: str, **more: str) -> Workspace:
        return self.workspaces.plan(self.spec(backend, **more), "brave-otter", self.repo)


def make_yard(top: Path) -> Yard:
    yard = Yard(top)
    for name in ("home", "repo", "plain", "tmp"):
        (top / name).mkdir(parents=True)
    apart(top / "home", yard.root)
    (top / "home/.gitconfig").write_text(
        "[user]\n\tname = Una User\n\temail = una@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    yard.git("init", "-q")
    (yard.repo / "src").mkdir()
    for number in range(12):
        (yard.repo / "src" / f"file{number}.txt").write_text(f"{number}\n" * 20)
    (yard.repo / "README").write_text("first\n")
    (yard.repo / ".gitignore").write_text("*.log\n")
    yard.git("add", ".")
    yard.git("commit", "-qm", "first")
    (yard.repo / "README").write_text("second\n")
    yard.git("commit", "-qam", "second")
    return yard
