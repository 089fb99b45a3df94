"""A restore under SIGKILL: at any moment, the earlier content is in place or in the checkpoint that
the restore made first, and the same restore completes when it is repeated.

`python -m tests.checkpoints.test_restore_kills 200` kills 200 times and prints the counts; a sample
runs in the suite.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.checkpoints import restore
from perdure.model import Checkpoint, Program, Session, SessionKey, SessionState, TaskSpec, Usage
from perdure.wiring import open_engine
from tests.pure.test_transcripts import ID, Diary
from tests.workspace.yard import make_yard

FILES = 200
PROMPTS = ("prompt 1\nanswer\n", "prompt 1\nanswer\nprompt 2\nanswer\n")


class Desk(Diary):
    """An agent with the transcripts of `Diary`, and with the driver methods that a restore
    needs."""

    def home(self, environ: dict[str, str]) -> Path:
        return Path(environ["HOME"])

    def locate(self, environ: object) -> Program:
        return Program(path="/bin/true")

    def writers(self, home: Path, session_id: str) -> tuple[int, ...]:
        return ()

    def total(self, transcript: bytes) -> Usage:
        return Usage()


def engine_at(top: Path, environ: dict[str, str]) -> Engine:
    desk: Any = Desk()
    settings = Settings(root=top / "root", state=top / "state", disk_ballast=0)
    return replace(open_engine(settings, environ), driver=lambda name: desk)


def files(place: Path, text: str) -> None:
    (place / "work").mkdir(exist_ok=True)
    for number in range(FILES):
        (place / "work" / f"{number}.txt").write_text(f"{text} {number}\n")
    (place / "only").unlink(missing_ok=True)
    (place / f"{text}.txt").write_text(text)


def standing(place: Path, transcript: Path) -> tuple[dict[str, str], str]:
    """Return the files of the workdir and the text of the conversation as they are now."""
    found = {
        str(path.relative_to(place)): path.read_text()
        for path in place.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }
    found.pop(".git", None)
    return found, transcript.read_text() if transcript.exists() else ""


def trial(top: Path, random_: random.Random, times: int) -> dict[str, int]:
    """Make a run with an earlier checkpoint and later work, each with a known conversation. Kill
    its restore this many times, at random moments. Return how often each result was seen."""
    yard = make_yard(top)
    engine = engine_at(top, yard.environ)
    spec = TaskSpec(
        prompt="x", repo=str(yard.repo), backend="worktree", branch="work", scope="talk"
    )
    workspace = engine.workspaces.plan(spec, "task", yard.repo)
    engine.store.add(spec, "r1", "task", workspace)
    fd = engine.workspaces.lock(workspace)
    engine.workspaces.prepare(workspace, "claude")
    os.close(fd)
    place, driver = Path(workspace.path), engine.driver("claude")
    transcript = Path(yard.environ["HOME"]) / "diaries" / f"{ID}.txt"
    transcript.parent.mkdir(parents=True)
    states = []
    for number, text in enumerate(("early", "late"), 1):
        files(place, text)
        transcript.write_text(PROMPTS[number - 1])
        engine.copies.take(driver, ID, transcript)
        saved = engine.workspaces.checkpoints.save(workspace, number)
        parts = engine.copies.parts(driver, ID)
        taken = Checkpoint(
            run="r1",
            number=number,
            attempt=number,
            at=number,
            why="end",
            workdir=saved,
            session_id=ID,
            conversation=parts,
            agent="claude",
        )
        engine.store.add_checkpoint(taken)
        states.append(standing(place, transcript))
    engine.store.put_session(
        Session(
            key=SessionKey("claude", "talk"),
            id=ID,
            state=SessionState.CONFIRMED,
            created=1,
            updated=1,
        )
    )
    engine.store.request_cancel("r1")
    counts = {"untouched": 0, "between": 0, "done": 0}
    for _ in range(times):
        (place / "only").write_text("in no checkpoint\n")
        before = standing(place, transcript)
        rows = {each.number for each in engine.store.checkpoints("r1")}
        command = [sys.executable, "-m", "tests.checkpoints.test_restore_kills", "work", str(top)]
        with subprocess.Popen(
            command, env=os.environ | yard.environ, stdout=subprocess.PIPE, start_new_session=True
        ) as working:
            assert working.stdout is not None and working.stdout.readline()
            time.sleep(random_.uniform(0, 0.6))
            os.killpg(working.pid, signal.SIGKILL)
        now = standing(place, transcript)
        kept = [each for each in engine.store.checkpoints("r1") if each.number not in rows]
        counts["untouched" if now == before else "done" if now == states[0] else "between"] += 1
        assert kept or now == before, "something was changed before it was kept"
        restore(engine, "task", 1)
        assert standing(place, transcript) == states[0], "the same restore again does not complete"
        if kept:
            restore(engine, "task", kept[0].number)
            assert standing(place, transcript) == before, "the keepsake is not what was there"
        restore(engine, "task", 2)
        assert standing(place, transcript) == states[1]
    engine.store.close()
    return counts


def test_whatever_the_moment_nothing_is_lost(tmp_path: Path) -> None:
    """A restore that is killed at random moments loses no file and no text, and completes when it
    is repeated."""
    assert sum(trial(tmp_path, random.Random(), 3).values()) == 3


def main(count: int) -> None:
    seed, total = random.randrange(1 << 30), {"untouched": 0, "between": 0, "done": 0}
    random_ = random.Random(seed)
    while sum(total.values()) < count:
        with tempfile.TemporaryDirectory(prefix="prk") as top:
            for name, number in trial(
                Path(top), random_, min(10, count - sum(total.values()))
            ).items():
                total[name] += number
        print(f"seed {seed}: {sum(total.values())} kills ({total}), nothing lost", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        its = engine_at(Path(sys.argv[2]), dict(os.environ))
        print("ready", flush=True)
        restore(its, "task", 1)
        sys.exit()
    main(int(sys.argv[1]))
