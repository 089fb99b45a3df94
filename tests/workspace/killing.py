"""Kills the creation of a workdir at a chosen system call, or at a random time, and checks the
result of a retry.

`python -m tests.workspace.killing 300` kills 300 times and prints the counts. A sample runs in the
suite.
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

from perdure.model import Workspace
from tests.workspace.yard import Yard, make_yard

CALLS = "rename,mkdir,unlink,link,fsync,write,symlink,rmdir"
MAKE = """
import sys
from pathlib import Path
from perdure.model import Backend, Workspace
from perdure.workspace import Workspaces
top, backend, *rest = sys.argv[1:]
workspace = Workspace(**dict(zip(("id", "path", "repo", "branch", "base"), rest)), backend=Backend(backend))
workspaces = Workspaces(Path(top) / "root")
workspaces.lock(workspace)
workspaces.prepare(workspace, "claude")
"""


def command(yard: Yard, workspace: Workspace) -> list[str]:
    """Return the command of a process that locks and prepares the workspace."""
    fields = (workspace.id, workspace.path, workspace.repo, workspace.branch, workspace.base)
    return [sys.executable, "-c", MAKE, str(yard.top), workspace.backend, *fields]


def kill_at(yard: Yard, workspace: Workspace, number: int) -> bool:
    """Send SIGKILL to the first process that makes its `number`th call of CALLS. Return whether a
    process was killed."""
    log = yard.top / "strace"
    trace = ["strace", "-f", "-o", str(log), "-e", f"trace={CALLS}"]
    inject = ["-e", f"inject={CALLS}:signal=SIGKILL:when={number}"]
    subprocess.run(
        [*trace, *inject, *command(yard, workspace)],
        env=os.environ | yard.environ,
        capture_output=True,
    )
    return "killed by SIGKILL" in log.read_text()


def kill_after(yard: Yard, workspace: Workspace, seconds: float, *, all_of_it: bool) -> bool:
    """Send SIGKILL after a time: only to the supervisor, whose git continues, or to all processes,
    as when the machine is lost. Return whether they were still running."""
    process = subprocess.Popen(
        command(yard, workspace),
        env=os.environ | yard.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        time.sleep(seconds)
        killed = process.poll() is None
        victims = [process.pid, *(descendants(process.pid) if all_of_it else [])]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(map(alive, victims[1:])):
            time.sleep(0.005)
    return killed


def alive(pid: int) -> bool:
    """Return whether a process is alive. A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    """Return all processes below a process. Each is stopped before its children are listed, so that
    it cannot start others."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def check(yard: Yard, workspace: Workspace, others: int = 0) -> list[str]:
    """Retry once. Return what is wrong afterwards, or an empty list if everything is right.
    `others`: the number of other workdirs of the repository."""
    workspaces = yard.workspaces
    fd = workspaces.lock(workspace)
    try:
        prepared = workspaces.prepare(workspace, "claude")
        again = workspaces.prepare(workspace, "claude")
        state = workspaces.state(workspace)
    finally:
        os.close(fd)
    top = workspace.path
    wrong = {
        "head": prepared.head != workspace.base,
        "branch": state.branch != workspace.branch,
        "dirty": bool(state.changed or state.untracked),
        "made twice": again.created,
        "files": yard.git("ls-files", cwd=top) != yard.git("ls-files"),
        "fsck of workdir": bool(yard.git("fsck", "--no-dangling", cwd=top)),
        "fsck of repository": bool(yard.git("fsck", "--no-dangling")),
        "the user's checkout": yard.git("status", "--porcelain") != "?? precious",
        "locks": bool(
            [
                *yard.repo.glob(".git/**/*.lock"),
                *yard.root.glob(".perdure/repos/**/*.lock"),
                *Path(top).glob(".git/**/*.lock"),
            ]
        ),
        "marks": bool(list(yard.root.glob(".perdure/locks/*.making"))),
        "stages": bool(list(yard.root.glob(".perdure/**/*stage*"))),
        "worktrees": len(yard.git("worktree", "list").splitlines())
        != (2 + others if workspace.backend == "worktree" else 1),
        "commit": yard.git(
            "commit", "--allow-empty", "-qm", "x", cwd=top, check=False, env=prepared.env
        )
        != "",
    }
    return [name for name, bad in wrong.items() if bad]


def killing_yard(top: Path) -> Yard:
    """Make a repository large enough that git makes several hundred system calls in it."""
    yard = make_yard(top)
    for number in range(150):
        (yard.repo / "src" / f"more{number}.txt").write_text(f"{number}\n" * 50)
    yard.git("add", ".")
    yard.git("commit", "-qm", "more")
    (yard.repo / "precious").write_text("of the user\n")
    return yard


def main(rounds: int) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            yard = killing_yard(Path(place).resolve())
            backend = ("worktree", "isolated")[number % 2]
            workspace = yard.plan(backend)
            how = random.choice(["call", "call", "supervisor", "machine"])
            times = random.choice([1, 1, 2])
            killed = False
            for _ in range(times):
                if how == "call":
                    killed |= kill_at(
                        yard,
                        workspace,
                        random.choice([random.randint(1, 12), random.randint(1, 200)]),
                    )
                else:
                    killed |= kill_after(
                        yard, workspace, random.uniform(0.05, 0.35), all_of_it=how == "machine"
                    )
            try:
                wrong = check(yard, workspace)
            except Exception as error:
                wrong = [repr(error)]
            counts[f"{backend} {how}: {'killed' if killed else 'missed'}"] += 1
            if wrong:
                counts["WRONG"] += 1
                print(backend, how, workspace.id, wrong, flush=True)
    print(json.dumps(counts, indent=2, sort_keys=True))


if __name__ == "__main__":
    main(int(sys.argv[1]))
