"""Plans: branches at the same time, compared with one after the other; and a line of tasks,
compared with the bare CLI called directly.

    python -m bench.plans [--reply SECONDS] [--agent claude]

The model is scripted. Each reply takes `--reply` seconds (default 10, about the time of a short
turn of a real model without its tools). The time that perdure and git add is measured, so shorter
replies give worse ratios.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.measure import Row, ms, table
from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage, native

BRANCHES = 8
JOBS = 4
LINE = 10
REPLY_S = 10.0


def rows(directory: Path, reply_s: float = REPLY_S, agent: str = "claude") -> Iterator[Row]:
    """Yield the rows of both measurements, with one reply time."""
    yield branching(directory, reply_s, agent)
    yield from overhead(directory, reply_s, agent)


def branching(directory: Path, reply_s: float, agent: str) -> Row:
    """Measure eight independent tasks after one root, each with its own file, which are merged at
    the end: `--jobs 4` compared with `--jobs 1`."""
    tasks = [("root", ""), *((f"t{number}", "root") for number in range(BRANCHES))]
    took = {
        jobs: _planned(directory / f"jobs{jobs}", reply_s, agent, tasks, jobs) for jobs in (1, JOBS)
    }
    what = f"{agent}: plan of {BRANCHES} tasks after a root, replies of {reply_s:g} s"
    return Row(
        what,
        f"--jobs {JOBS}: {ms(took[JOBS])}",
        "--jobs 1",
        ms(took[1]),
        took[1] / took[JOBS],
        2.5,
        least=True,
    )


def overhead(directory: Path, reply_s: float, agent: str) -> Iterator[Row]:
    """Measure the total time of ten tasks of one line, by `plan run` and by the CLI's own resume.
    perdure is measured twice: with a process for each task, as with the CLI, and by default, which
    keeps one process if the agent supports it."""
    tasks = [(f"t{number}", f"t{number - 1}" if number else "") for number in range(LINE)]
    other = _by_hand(directory / "by-hand", reply_s, agent)
    for warm, words in (("off", "a process each"), ("plans", "kept warm")):
        ours = _planned(directory / "ours", reply_s, agent, tasks, 1, {"PERDURE_WARM": warm})
        note = f"{(ours - other) / LINE * 1000:.0f} ms a task"
        what = f"{agent}: plan of {LINE} tasks in one line, {words}, replies of {reply_s:g} s"
        yield Row(
            what, ms(ours), "the bare CLI with --resume", ms(other), ours / other, 1.05, note=note
        )


def _planned(
    directory: Path,
    reply_s: float,
    agent: str,
    tasks: Sequence[tuple[str, str]],
    jobs: int,
    extra: Mapping[str, str] | None = None,
) -> float:
    """Return the seconds of a complete `perdure plan run`, in which every task must have continued
    or forked a conversation."""
    with Rehearsal(_script([name for name, _ in tasks], reply_s)) as rehearsal:
        stage = Stage(directory, agent, rehearsal, dict(extra or {}))
        lines = ['name = "bench"', f'agent = "{agent}"', 'permissions = "full"']
        for name, need in tasks:
            lines += [
                "[[tasks]]",
                f'name = "{name}"',
                f'prompt = "Write {name}.txt now."',
                f"needs = {json.dumps(need.split())}",
            ]
        (directory / "plan.toml").write_text("\n".join(lines))
        words = [
            sys.executable,
            "-m",
            "perdure",
            "plan",
            "run",
            str(directory / "plan.toml"),
            "--jobs",
            str(jobs),
            "--json",
        ]
        begun = time.perf_counter()
        done = subprocess.run(
            words, cwd=stage.repo, env=stage.environ, capture_output=True, text=True, check=False
        )
        took = time.perf_counter() - begun
        assert done.returncode == 0, done.stderr
        verdicts = {task["verdict"] for task in json.loads(done.stdout)["tasks"]}
        assert verdicts <= {"fresh", "native", "forked"}, verdicts
        stage.close()
    shutil.rmtree(directory)
    return took


def _by_hand(directory: Path, reply_s: float, agent: str) -> float:
    """Return the seconds of the same prompts in a row, by the CLI's own command. All but the first
    are resumed by id."""
    names = [f"t{number}" for number in range(LINE)]
    with Rehearsal(_script(names, reply_s)) as rehearsal:
        stage = Stage(directory, agent, rehearsal)
        session = ""
        begun = time.perf_counter()
        for name in names:
            session = _turn(stage, f"Write {name}.txt now.", session)
        took = time.perf_counter() - begun
        stage.close()
    shutil.rmtree(directory)
    return took


def _turn(stage: Stage, prompt: str, session: str) -> str:
    """Run one turn by the CLI's own command, and return the conversation's id."""
    if stage.agent == "claude":
        words = [
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            "--permission-mode",
            "bypassPermissions",
        ]
        words += ["--resume", session] if session else []
    else:
        words = [
            "exec",
            "--json",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
        ]
        words += ["resume", session, "-"] if session else ["-"]
    program = [str(native(stage.agent)), *words]
    done = subprocess.run(
        program,
        cwd=stage.repo,
        env=stage.environ,
        input=prompt,
        capture_output=True,
        text=True,
        check=True,
    )
    named = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return next(
        str(found) for line in named if (found := line.get("session_id") or line.get("thread_id"))
    )


def _script(names: Sequence[str], reply_s: float) -> str:
    """Return a script for each task, the last one first: a tool call that writes the task's file,
    then a text. The two replies share the reply time."""
    slow = f"slow {reply_s / 2:g}\n" if reply_s else ""
    parts = [
        f"match Write {name}.txt now.\nby history\n{slow}run echo {name} > "
        f"{name}.txt\n---\n{slow}say {name} is written.\n"
        for name in names
    ]
    return "\n===\n".join(reversed(parts))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.plans", description=__doc__)
    parser.add_argument(
        "--reply", type=float, default=REPLY_S, help="seconds that the model takes for each task"
    )
    parser.add_argument("--agent", choices=["claude", "codex"], default="claude")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="perdure-plans-"))
    try:
        print(table(list(rows(directory, arguments.reply, arguments.agent))))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
