"""Whole processes: the start of the command, and `perdure run` compared with the bare CLI with the
same prompt."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bench.measure import Row, command, interleaved, ms
from perdure.agents.rehearsal import Rehearsal
from tests.journeys.recorder import record
from tests.journeys.stage import Stage, native


def start_up(directory: Path) -> Iterator[Row]:
    """Measure `perdure ls` with fifty runs, and `--help`, compared with the bare interpreter."""
    with Rehearsal("say Hello.") as rehearsal:
        stage = Stage(directory / "s", "claude", rehearsal)
        from perdure import store as stores
        from perdure.model import Backend, TaskSpec, Workspace

        store = stores.open(stage.state / "perdure.db")
        for number in range(50):
            store.add(
                TaskSpec(prompt="x"),
                f"{number:032}",
                f"run-{number}",
                Workspace(id=f"w{number}", path="/w", backend=Backend.TASK),
            )
        store.close()
        program = str(Path(sys.executable).with_name("perdure"))
        words = [[program, "ls"], [program, "--help"], [sys.executable, "-c", "pass"]]
        ls, usage, bare = interleaved(
            15, *(command(each, stage.repo, stage.environ) for each in words)
        )
    yield Row("perdure ls, 50 runs", ms(ls), "python -c pass", ms(bare), ls / bare, 3.5)
    yield Row("perdure --help", ms(usage), "python -c pass", ms(bare), usage / bare, 3)


def turns(directory: Path, agent: str, seconds: float, rounds: int) -> Iterator[Row]:
    """Measure one turn of the real CLI by perdure, with everything recorded, compared with the CLI
    called directly."""
    script = "by history\n" + (f"slow {seconds:g}\n" if seconds else "") + "say Hello.\n"
    with Rehearsal(script) as rehearsal:
        stage = Stage(directory / f"{agent}{seconds:g}", agent, rehearsal)
        bare = {
            "claude": [
                str(native("claude")),
                "-p",
                "--output-format",
                "stream-json",
                "--verbose",
                "Say hello.",
            ],
            "codex": [
                str(native("codex")),
                "exec",
                "--json",
                "--skip-git-repo-check",
                "Say hello.",
            ],
        }[agent]
        ours = [sys.executable, "-m", "perdure", "run", "--quiet", "--agent", agent, "Say hello."]
        passing = [sys.executable, "-c", "pass"]
        loading = [sys.executable, "-c", f"import {', '.join(_loaded(stage, agent))}"]
        took, other, python, imports = interleaved(
            rounds,
            *(command(each, stage.repo, stage.environ) for each in (ours, bare, passing, loading)),
        )
        spent = [[_processor(each, stage) for each in (ours, bare, passing)] for _ in range(rounds)]
        stage.close()
    shutil.rmtree(stage.directory)
    what = f"{agent}: a {seconds:g} s turn" if seconds else f"{agent}: the shortest turn"
    yield Row(
        f"{what}, extra wall time in python -c pass",
        ms(took - other),
        "the bare CLI",
        ms(other),
        (took - other) / python,
        4,
        note="perdure's modules loaded before the agent starts, without any work",
        limit=(imports - python) / python,
    )
    if seconds:
        yield Row(f"{what}", ms(took), "the bare CLI", ms(other), took / other, 1.03)
        return
    mine, its, least = (statistics.median(each) for each in zip(*spent, strict=True))
    yield Row(
        f"{what}, extra CPU in python -c pass",
        ms(mine - its),
        "the bare CLI",
        ms(its),
        (mine - its) / least,
        10,
    )


LAUNCH_S = 0.08
"""Goal for the time until the agent's program runs, in seconds."""


def launch(directory: Path) -> Iterator[Row]:
    """Measure the time from the start of `perdure update` in an existing workdir until the agent's
    program runs, compared with a bare Python. A script in place of the agent notes the time, then
    becomes the agent."""
    with Rehearsal("by history\nsay Hello.\n") as rehearsal:
        stage = Stage(directory / "launch", "codex", rehearsal)
        times, agent = stage.directory / "times", stage.directory / "codex"
        agent.write_text(
            f'#!/bin/bash\necho "$EPOCHREALTIME" >> {times}\nexec {native("codex")} "$@"\n'
        )
        agent.chmod(0o755)
        environ = {**stage.environ, "PERDURE_CODEX": str(agent)}
        perdure = [sys.executable, "-m", "perdure"]
        command(
            [*perdure, "run", "-q", "--agent", "codex", "--name", "task", "Say hello."],
            stage.repo,
            environ,
        )()
        update = command([*perdure, "update", "-q", "task", "Again."], stage.repo, environ)
        bare = command([sys.executable, "-c", "pass"], stage.repo, environ)
        took, python = [], []
        for _ in range(15):
            begun = time.time()
            update()
            took.append(float(times.read_text().split()[-1]) - begun)
            begun = time.perf_counter()
            bare()
            python.append(time.perf_counter() - begun)
        stage.close()
    ours, least = statistics.median(took), statistics.median(python)
    yield Row(
        "update in place: from its start until the agent runs",
        ms(ours),
        "the goal",
        ms(LAUNCH_S),
        ours / LAUNCH_S,
        1,
        note=f"python -c pass {ms(least)}",
    )


EVENTS = 20_000
"""Number of events that a conversation of some days has in the journal."""


def long_run(directory: Path) -> Iterator[Row]:
    """Measure `perdure update` of a run with a long journal, compared with a short one."""
    with Rehearsal("by history\nsay Hello.\n") as rehearsal:
        stage = Stage(directory / "long", "codex", rehearsal)
        names = ("long", "short")
        for name in names:
            record(stage, "run", "-q", "--agent", "codex", "--name", name, "Say hello.")
        with closing(sqlite3.connect(stage.state / "perdure.db")) as connection, connection:
            connection.execute(
                "WITH RECURSIVE many (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM many"
                f" WHERE number < {EVENTS}) INSERT INTO records (run, attempt, at, kind, event)"
                " SELECT run, attempt, at, kind, event FROM records, many WHERE kind = 'said'"
                " AND run = (SELECT id FROM runs WHERE name = 'long')"
            )
        words = [[sys.executable, "-m", "perdure", "update", "-q", name, "On."] for name in names]
        took, other = interleaved(7, *(command(each, stage.repo, stage.environ) for each in words))
        stage.close()
    what = f"update of a run with {EVENTS:,} events"
    yield Row(what, ms(took), "with twenty", ms(other), took / other, 1.5)


def _loaded(stage: Stage, agent: str) -> list[str]:
    """Return perdure's modules that a first run loads before its agent starts."""
    seen = record(stage, "run", "-q", "--agent", agent, "--name", "loaded", "Say hello.")
    return sorted(name for name in seen.modules if name.partition(".")[0] == "perdure")


def calls(directory: Path) -> Iterator[Row]:
    """Count the programs that a call starts and the modules that it loads, before and after its
    agent."""
    with Rehearsal("by history\nsay Hello.\n") as rehearsal:
        stage = Stage(directory / "calls", "codex", rehearsal)
        first = record(stage, "run", "-q", "--agent", "codex", "--name", "task", "Say hello.")
        record(stage, "update", "-q", "task", "Again.")
        again = record(stage, "update", "-q", "task", "And again.")
        stage.close()
    for what, seen in (("run", first), ("update in place", again)):
        for when, git in (("before", seen.before), ("after", seen.after)):
            count = len(git)
            yield Row(f"{what}: starts of git {when} the agent", f"{count}", "", "", count, 3)
        own = sum(name.partition(".")[0] == "perdure" for name in seen.modules)
        loaded = f"{own} of {len(seen.modules)}"
        yield Row(f"{what}: own modules before the agent", loaded, "the goal", "170", own / 170, 1)


def refusal(directory: Path) -> Iterator[Row]:
    """Measure the processor time of a command that is given the name of a run that does not
    exist."""
    with Rehearsal("say Hello.") as rehearsal:
        stage = Stage(directory / "refusal", "codex", rehearsal)
        words = ([sys.executable, "-m", "perdure", "retry", "nope"], [sys.executable, "-c", "pass"])
        spent = [[_processor(each, stage) for each in words] for _ in range(15)]
        ours, bare = (statistics.median(each) for each in zip(*spent, strict=True))
        stage.close()
    yield Row("perdure retry nope, CPU", ms(ours), "python -c pass", ms(bare), ours / bare, 4)


def _processor(words: list[str], stage: Stage) -> float:
    """Return the seconds of processor time, user and system, of a process that waits for all its
    child processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=stage.repo, env=stage.environ, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
