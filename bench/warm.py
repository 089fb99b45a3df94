"""Tasks of one line in one process, compared with a process for each task: perdure with and without
kept agents, with the real Claude Code and Codex.

`python -m bench.warm [ROUNDS]` prints only these rows.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count, product
from pathlib import Path

import perdure
from bench.measure import Row, interleaved, ms, table
from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage


def rows(directory: Path, rounds: int) -> Iterator[Row]:
    """Measure a task with one turn of one sentence, and a task with one command. Everything is
    recorded, with checkpoints and receipts."""
    tasks = (
        ("a short task of a plan", "say Done."),
        ("a task with one command", "run echo one >> one.txt\n---\nsay Done."),
    )
    for agent, (what, script) in product(("claude", "codex"), tasks):
        replies = "\n---\n".join([script] * (rounds + 1))
        with ExitStack() as stack:
            works = [
                _line(stack, directory / f"{agent}{what[:7]}{policy}", agent, policy, replies)
                for policy in ("plans", "off")
            ]
            warm, cold = interleaved(rounds, *works)
        yield Row(
            f"{agent}: {what}, with a kept agent",
            ms(warm),
            "spawn and resume",
            ms(cold),
            cold / warm,
            2,
            least=True,
        )


def _line(
    stack: ExitStack, directory: Path, agent: str, policy: str, script: str
) -> Callable[[], object]:
    """Return a function that runs the next task of a line each time it is called."""
    stage = Stage(
        directory, agent, stack.enter_context(Rehearsal(script)), extra={"PERDURE_WARM": policy}
    )
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    runner = stack.enter_context(perdure.open(cwd=stage.repo, environ=stage.environ))
    numbers = count(1)

    def task() -> None:
        number = next(numbers)
        line = {
            "agent": agent,
            "permissions": "full",
            "scope": "plan:p/main",
            "branch": "perdure/p-main",
        }
        run = runner.run(f"Task {number}.", name=f"t{number}", **line)
        verdict = runner.report(run.name)["attempts"][-1]["receipt"]["verdict"]
        assert (run.state, run.attempt, verdict) == (
            "succeeded",
            1,
            "fresh" if number == 1 else "native",
        ), run

    return task


if __name__ == "__main__":
    scratch = Path(tempfile.mkdtemp(prefix="perdure-bench-"))
    try:
        print(table(list(rows(scratch, int(sys.argv[1]) if sys.argv[1:] else 9))))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
