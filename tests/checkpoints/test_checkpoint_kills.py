"""Checkpoints under SIGKILL: after a kill at any moment, every published checkpoint has both
halves, the workdir and the conversation, and the two belong together.

`python -m tests.checkpoints.test_checkpoint_kills 200` kills 200 times and prints the counts; a
sample runs in the suite.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import store as stores
from perdure.agents.transcripts import Copies
from perdure.engine.attempt import Engine
from perdure.engine.attempt.checkpoints import Checkpointing, prune
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.host import process
from perdure.host.homes.linked_homes import LinkedHomes
from perdure.model import (
    Backend,
    Claim,
    Continuation,
    Session,
    SessionKey,
    SessionState,
    Start,
    TaskSpec,
    Workspace,
)
from perdure.protocols import Begun
from perdure.workspace import Workspaces
from tests.pure.test_transcripts import ID, Diary
from tests.workspace.test_photograph import made
from tests.workspace.yard import Yard, make_yard

LINES = 20_000
"""Number of lines of a transcript that takes a moment to copy."""


class Bench:
    """A run with a workdir and a conversation, for taking checkpoints. Each process makes its own
    `Bench`."""

    def __init__(self, top: Path, workspace: Workspace, environ: dict[str, str]) -> None:
        self.workspace, self.home = workspace, top / "home"
        self.driver: Any = Diary()
        self.engine = Engine(
            store=stores.open(top / "state/perdure.db"),
            workspaces=Workspaces(top / "root", environ=environ),
            driver=lambda name: self.driver,
            copies=Copies(top / "state/transcripts"),
            state=top / "state",
            environ=environ,
            worker=process.worker_identity(),
            homes=LinkedHomes(top / "state"),
        )
        self.transcript = self.home / "diaries" / f"{ID}.txt"
        self.transcript.parent.mkdir(parents=True, exist_ok=True)

    def opened(self) -> LiveAttempt:
        """Begin the run's attempt, or take it over from the process that was killed, and return
        it."""
        store, session = (
            self.engine.store,
            Session(
                key=SessionKey("claude", "talk"),
                id=ID,
                state=SessionState.CONFIRMED,
                created=1,
                updated=1,
            ),
        )
        held = list(store.claims())
        if held:
            claim = store.adopt(held[0], self.engine.worker, 600)
        else:
            store.add(TaskSpec(prompt="x", scope="talk"), "r1", "task", self.workspace)
            claimed = store.claim(self.engine.worker, 600)
            assert claimed is not None
            claim = claimed
            directory = self.engine.attempt_directory(claim)
            directory.mkdir(parents=True)
            (directory / "prompt.md").write_text("1")
            store.begin(
                claim,
                Begun(
                    continuation=Continuation(kind=Start.FRESH, session_id=ID),
                    directory=str(directory),
                    prompt_sha256="",
                    flags={},
                    agent_version="",
                    before=None,
                    session=session,
                    workspace=self.workspace,
                ),
            )
        (attempt,) = store.attempts("r1")
        return LiveAttempt(
            claim=claim,
            attempt=attempt,
            driver=self.driver,
            workspace=self.workspace,
            home=self.home,
            session=session,
            process=None,
        )

    def work(self) -> None:
        """Write a number into the workdir and the conversation and take a checkpoint, repeatedly,
        until the process is killed."""
        opened, number = self.opened(), 0
        claim: Claim = opened.claim
        with contextlib.suppress(FileNotFoundError):
            number = int((Path(self.workspace.path) / "count.txt").read_text() or 0)
        while True:
            number += 1
            with self.transcript.open("a") as file:
                file.write(f"prompt {number}\n" + "answer\n" * LINES)
            (Path(self.workspace.path) / "count.txt").write_text(str(number))
            saved = Checkpointing(self.engine, opened).take(
                "tool",
                self.engine.store.next_checkpoint(self.workspace.id, claim.run.id),
            )
            self.engine.store.add_checkpoint(saved, claim)
            prune(self.engine.store, self.engine.workspaces, claim.run)
            print(number, flush=True)

    def look(self) -> int:
        """Check that the workdir and the conversation of every checkpoint have the same number.
        Return the number of checkpoints."""
        rows = self.engine.store.checkpoints("r1")
        for row in rows:
            said = self.engine.copies.find("diary", row.conversation[0])
            assert said is not None, f"the conversation of checkpoint {row.number} is lost"
            turns = len(self.driver.prompts(said.read_bytes()[: row.conversation[0].size]))
            at = [
                f"--git-dir={row.workdir.git_dir}",
                "show",
                f"{row.workdir.ref}:worktree/count.txt",
            ]
            shown = subprocess.run(["git", *at], capture_output=True, text=True, check=True).stdout
            # `work` changes neither half while a checkpoint is taken, so both halves have the same
            # number.
            assert int(shown) == turns, (
                f"checkpoint {row.number}: {shown} in the workdir, {turns} in the conversation"
            )
        return len(rows)


def strike(yard: Yard, top: Path, workspace: Workspace, seconds: float) -> None:
    """Start a process that works. Kill it and its children `seconds` after its first checkpoint."""
    fields = (workspace.id, workspace.path, workspace.repo, workspace.branch, workspace.base)
    command = [
        sys.executable,
        "-m",
        "tests.checkpoints.test_checkpoint_kills",
        "work",
        str(top),
        workspace.backend,
        *fields,
    ]
    environ = os.environ | yard.environ
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, start_new_session=True
    ) as working:
        assert working.stdout is not None
        assert working.stdout.readline(), "it never took one"
        time.sleep(seconds)
        os.killpg(working.pid, signal.SIGKILL)


def trial(top: Path, backend: str, random_: random.Random, times: int) -> int:
    """Kill one run this many times. Check after each kill that every published checkpoint is
    complete and that the newest can be restored. Return how many checkpoints were checked."""
    yard = make_yard(top)
    workspace, place = made(yard, backend)
    rows = 0
    for _ in range(times):
        strike(yard, top, workspace, random_.uniform(0, 0.4))
        bench = Bench(top, workspace, yard.environ)
        rows += bench.look()
        newest = bench.engine.store.checkpoints("r1")[-1]
        fd = bench.engine.workspaces.lock(workspace, "the test")
        bench.engine.workspaces.checkpoints.restore(workspace, newest.workdir.commit)
        os.close(fd)
        bench.engine.copies.put_back(
            bench.driver, ID, bench.home, place, newest.conversation, exactly=True
        )
        turns = len(bench.driver.prompts(bench.transcript.read_bytes()))
        assert int((place / "count.txt").read_text()) == turns
        bench.engine.store.close()
    return rows


@pytest.mark.parametrize("backend", [Backend.WORKTREE, Backend.TASK])
def test_no_row_without_both_halves(tmp_path: Path, backend: Backend) -> None:
    """After kills at random moments, published checkpoints have both halves of one moment, and the
    newest can be restored."""
    assert trial(tmp_path, backend, random.Random(), 3) >= 3


def main(count: int) -> None:
    seed = random.randrange(1 << 30)
    random_, done, rows = random.Random(seed), 0, 0
    while done < count:
        with tempfile.TemporaryDirectory(prefix="pck") as top:
            rows += trial(
                Path(top),
                random_.choice([Backend.WORKTREE, Backend.TASK]),
                random_,
                min(10, count - done),
            )
        done += 10
        print(
            f"seed {seed}: {min(done, count)} kills, {rows} rows looked at, none without both "
            "halves",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1] == "work":
        top, backend, *rest = sys.argv[2:]
        its = Workspace(
            **dict(zip(("id", "path", "repo", "branch", "base"), rest, strict=True)),
            backend=Backend(backend),
        )
        Bench(Path(top), its, dict(os.environ)).work()
    main(int(sys.argv[1]))
