"""A restore that is killed at any point is completed by the next one, and no earlier content is
lost. The suite runs a sample.

`python -m tests.workspace.test_photograph_kills 200` kills 200 times and prints the counts.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from perdure.model import Saved, Workspace
from tests.workspace.killing import alive, descendants
from tests.workspace.test_photograph import Marks, fill, made, marks, wreck
from tests.workspace.yard import Yard, make_yard

CALLS = "rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,symlink,symlinkat,openat,write,fsync,rmdir,syncfs"
RUN = """
import sys
from pathlib import Path
from perdure.model import Backend, Workspace
from perdure.workspace import Workspaces
top, what, commit, backend, *rest = sys.argv[1:]
workspace = Workspace(**dict(zip(("id", "path", "repo", "branch", "base"), rest)), backend=Backend(backend))
workspaces = Workspaces(Path(top) / "root")
print("begun", flush=True)
if what == "save":
    workspaces.checkpoints.save(workspace, 3)
else:
    workspaces.checkpoints.restore(workspace, commit)
"""


def command(yard: Yard, workspace: Workspace, what: str, commit: str) -> list[str]:
    fields = (workspace.id, workspace.path, workspace.repo, workspace.branch, workspace.base)
    return [sys.executable, "-c", RUN, str(yard.top), what, commit, workspace.backend, *fields]


class Case:
    """A workdir with a checkpoint of its earlier state, and another one of its current state."""

    def __init__(self, top: Path, backend: str) -> None:
        self.yard = make_yard(top)
        self.workspace, self.top = made(self.yard, backend)
        if self.workspace.repo:
            (self.top / "src/file1.txt").write_text("staged\n")
            self.yard.git("add", "src/file1.txt", cwd=self.top)
        fill(self.yard, self.top)
        self.then: Marks = marks(self.top)
        self.first: Saved = self.yard.workspaces.checkpoints.save(self.workspace, 1)
        wreck(self.top)
        self.now: Marks = marks(self.top)
        self.second: Saved = self.yard.workspaces.checkpoints.save(self.workspace, 2)

    def tree(self, commit: str) -> str:
        return self.yard.git("--git-dir", self.second.git_dir, "rev-parse", f"{commit}:worktree")

    def kill_at(self, what: str, number: int) -> bool:
        """Send SIGKILL to the first process that makes its `number`th call. Return whether a
        process was killed."""
        log = self.yard.top / "strace"
        trace = [
            "strace",
            "-f",
            "-o",
            str(log),
            "-e",
            f"trace={CALLS}",
            "-e",
            f"inject={CALLS}:signal=SIGKILL:when={number}",
        ]
        words = [*trace, *command(self.yard, self.workspace, what, self.first.commit)]
        subprocess.run(words, env=os.environ | self.yard.environ, capture_output=True)
        return "killed by SIGKILL" in log.read_text()

    def kill_after(self, what: str, seconds: float) -> None:
        """Send SIGKILL to all processes of a save or restore, this long after its work began."""
        words = command(self.yard, self.workspace, what, self.first.commit)
        environ = os.environ | self.yard.environ
        with subprocess.Popen(
            words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            time.sleep(seconds)
            victims = [process.pid, *descendants(process.pid)]
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while any(map(alive, victims[1:])):
                time.sleep(0.005)

    def check(self) -> list[str]:
        """Restore once. Return what is wrong afterwards, or an empty list if everything is
        right."""
        restored = self.yard.workspaces.checkpoints.restore(self.workspace, self.first.commit)
        kept = self.yard.git(
            "--git-dir",
            self.second.git_dir,
            "for-each-ref",
            "--format=%(objectname)",
            "refs/perdure/rescue",
        ).split()
        staged = (
            self.yard.git("diff", "--cached", "--name-only", cwd=self.top)
            if self.workspace.repo
            else "src/file1.txt"
        )
        wrong = {
            "files": marks(self.top) != self.then,
            "index": staged != "src/file1.txt",
            "said to differ": restored.differs != (),
            "what was there is not kept": self.tree(self.second.commit) not in map(self.tree, kept),
            "checkpoints": not {1, 2}
            <= self.yard.workspaces.checkpoints.list_saved(self.workspace).keys(),
            "not sound": "error"
            in self.yard.git("--git-dir", self.second.git_dir, "fsck", "--no-dangling"),
            "leftovers": bool(list(self.top.rglob(".perdure-*"))),
        }
        return [name for name, bad in wrong.items() if bad]


@pytest.mark.parametrize(
    ("backend", "number"), [("worktree", 40), ("task", 90), ("worktree", 330), ("task", 420)]
)
def test_a_restore_that_is_killed_at_a_call_is_completed(
    tmp_path: Path, backend: str, number: int
) -> None:
    """The first process (perdure or one of its gits) that makes the given system call is killed.
    The next restore completes, and the earlier content is kept."""
    case = Case(tmp_path, backend)
    assert case.kill_at("restore", number)
    assert case.check() == []


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_saves_and_restores_that_are_killed_at_any_time_lose_nothing(
    tmp_path: Path, backend: str
) -> None:
    """The machine is lost during saves and restores, several times in a row. No content is lost."""
    case = Case(tmp_path, backend)
    for what, seconds in (("save", 0.03), ("restore", 0.1), ("restore", 0.25)):
        case.kill_after(what, seconds)
    assert case.check() == []


def main(rounds: int) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            case = Case(Path(place).resolve(), ("worktree", "isolated", "task")[number % 3])
            how = random.choice(["call", "time"])
            for _ in range(random.choice([1, 1, 2])):
                what = random.choice(["save", "restore", "restore"])
                if how == "call":
                    counts[
                        "killed" if case.kill_at(what, random.randint(1, 700)) else "missed"
                    ] += 1
                else:
                    case.kill_after(what, random.uniform(0, 0.8))
                    counts["killed"] += 1
            try:
                wrong = case.check()
            except Exception as error:
                wrong = [repr(error)]
            if wrong:
                counts["WRONG"] += 1
                print(case.workspace.backend, how, wrong, flush=True)
    print(json.dumps(counts, indent=2, sort_keys=True))


if __name__ == "__main__":
    main(int(sys.argv[1]))
