"""Shared parts of both kinds of faults: one task with a real agent CLI, and the checks after the
fault."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Done, Stage

AGENT = "codex"
"""The agent with the shortest start-up time."""
SCRIPT = """by history
run echo precious > one.txt
---
say The file is written.
"""
RUN = (
    "run",
    "--name",
    "task",
    "--permissions",
    "full",
    "--agent",
    AGENT,
    "--attempts",
    "1",
    "--json",
    "Write one.txt. The magic word is quercus.",
)
TRIES = 4
DATABASE = "perdure.db"


@dataclass
class Trial:
    """The result of one trial. `wrong` is empty if all promises held."""

    seed: int
    what: str
    wrong: list[str] = field(default_factory=list)
    struck: bool = False
    """Whether the fault happened: a call was answered with ENOSPC, or the power was cut while a
    supervisor was alive. Other trials do not count."""
    ended: bool = False
    """Whether the command ended with an error because of the fault."""
    met: Counter[str] = field(default_factory=Counter)
    """The faults that happened: how many calls of each program got no space, and after which
    acknowledgements the power was cut."""


def play(
    seed: int,
    what: str,
    act: Callable[[Stage, random.Random, Trial], None],
    prepare: Callable[[Path], None] = lambda place: None,
) -> Trial:
    """Make one trial in a scratch directory, and return its result. `prepare` may mount something
    on the directory first."""
    trial = Trial(seed, what)
    directory = Path(tempfile.mkdtemp(prefix="pf"))
    prepare(directory)
    with Rehearsal(SCRIPT) as rehearsal:
        stage = Stage(directory, AGENT, rehearsal)
        try:
            act(stage, random.Random(seed), trial)
        except (AssertionError, subprocess.TimeoutExpired, sqlite3.Error) as error:
            trial.wrong.append(f"{type(error).__name__}: {error}"[:600])
        finally:
            stage.close()
    shutil.rmtree(directory, ignore_errors=True)
    return trial


def one_sentence(done: Done) -> bool:
    """Return whether a failed command reported its failure as perdure does, in one sentence without
    a traceback."""
    return "Traceback" not in done.err


def goes_on(stage: Stage, trial: Trial, *, file: bool = True) -> None:
    """Check that the task can be completed without manual steps when the disk works again, and that
    the stored data are valid.

    `file`: whether the file that the agent writes must exist as well.
    """
    accepted = bool(json.loads(stage.perdure("ls", "--json").out)["runs"])
    done = stage.perdure(*(("retry", "task", "--json") if accepted else RUN))
    tries = 1
    while done.code not in (0, 6) and tries < TRIES:
        done = stage.perdure("retry", "task", "--json")
        tries += 1
    shown = stage.show()
    if shown["state"] != "succeeded":
        trial.wrong.append(
            f"after {tries} tries it is {shown['state']}: {shown['reason']} {done.err[-300:]}"
        )
        return
    if (
        file
        and not tool_failed(stage)
        and (Path(shown["workspace"]["path"]) / "one.txt").read_text() != "precious\n"
    ):
        trial.wrong.append("the agent's file is not there")
    receipts = [
        attempt["receipt"]["verdict"] for attempt in shown["attempts"] if attempt["receipt"]
    ]
    if not receipts or receipts[-1] == "broken":
        trial.wrong.append(f"the receipts are {receipts}")
    trial.wrong += whole(stage)
    stage.until(lambda: not stage.marked(), "nothing of an attempt lives on")


def tool_failed(stage: Stage) -> bool:
    """Return whether every command of the agent was reported as failed. Then its file may be
    missing, and the journal says why. The scripted model continues after failed commands."""
    with closing(sqlite3.connect(stage.state / DATABASE)) as database:
        kinds = [
            json.loads(row[0])
            for row in database.execute("SELECT event FROM records WHERE kind = 'tool_ended'")
        ]
    return bool(kinds) and all(event.get("ok") is False for event in kinds)


def whole(stage: Stage) -> list[str]:
    """Return what is damaged on the disk. The list is empty if nothing is."""
    wrong = []
    with closing(sqlite3.connect(stage.state / DATABASE)) as database:
        if (said := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            wrong.append(f"the database: {said}")
        open_attempts = database.execute(
            "SELECT count(*) FROM attempts WHERE ended IS NULL"
        ).fetchone()[0]
        if open_attempts:
            wrong.append(f"{open_attempts} attempts have no end")
    for path in stage.state.glob("runs/*/*/*.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            wrong.append(f"{path.name} is cut off")
    for copy in stage.copies():
        if copy.name == "main" and copy.read_bytes()[-1:] not in (b"\n", b""):
            wrong.append("a copy ends in the middle of a line")
    fsck = subprocess.run(
        ["git", "fsck", "--no-dangling"],
        cwd=stage.repo,
        env=stage.environ,
        capture_output=True,
        text=True,
    )
    if fsck.returncode:
        wrong.append(f"git fsck: {fsck.stderr[:200]}")
    return wrong


def summary(trials: list[Trial]) -> int:
    """Print the counts, and each failed trial with its seed. Return the exit code of the
    program."""
    for trial in trials:
        for line in trial.wrong:
            print(f"WRONG seed {trial.seed}, {trial.what}: {line}", flush=True)
    for what in dict.fromkeys(trial.what for trial in trials):
        here = [trial for trial in trials if trial.what == what]
        counted = [trial for trial in here if trial.struck]
        ended, wrong = (
            sum(trial.ended for trial in counted),
            sum(bool(trial.wrong) for trial in here),
        )
        print(
            f"{what:26} {len(here):4} trials {len(counted):4} counted {ended:4} ended the command "
            f"{wrong:4} wrong"
        )
    who: Counter[str] = Counter()
    for trial in trials:
        who.update(trial.met.keys())
    if who:
        print(
            "in so many trials: "
            + ", ".join(f"{name} {number}" for name, number in who.most_common())
        )
    counted_all, bad = (
        sum(trial.struck for trial in trials),
        sum(bool(trial.wrong) for trial in trials),
    )
    print(f"{len(trials)} trials, {counted_all} counted, {bad} wrong")
    return 1 if bad else 0
