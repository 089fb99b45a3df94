"""Whole processes: start-up of the command, and `perdure run` against the bare CLI on the same
prompt."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.measure import Row, command, interleaved, ms
from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage, native


def start_up(directory: Path) -> Iterator[Row]:
    """`perdure ls` with fifty runs, and `--help`, against the bare interpreter."""
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
    """One turn of the real CLI by perdure, everything recorded, against the CLI by hand."""
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
        took, other = interleaved(
            rounds,
            command(ours, stage.repo, stage.environ),
            command(bare, stage.repo, stage.environ),
        )
        stage.close()
    shutil.rmtree(stage.directory)
    what = (
        f"{agent}: a {seconds:g} s turn, the whole process"
        if seconds
        else f"{agent}: the shortest turn, the whole process"
    )
    yield Row(
        f"{what}, extra",
        ms(took - other),
        "the bare CLI",
        ms(other),
        (took - other) * 1000,
        80,
        note="ratio column: extra ms",
    )
    if seconds:
        yield Row(f"{what}", ms(took), "the bare CLI", ms(other), took / other, 1.03)
