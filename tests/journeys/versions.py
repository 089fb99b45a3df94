"""Moves a capsule from one version of a CLI to another: `make versions`. Prints a table, and exits
with 1 if a conversation did not continue.

`python -m tests.journeys.versions OLDER_MODULES` compares the pinned programs with those below
another `node_modules`, in both directions. A task is killed in its second tool call on one machine,
exported, and finished on the other machine by the other version.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.machines import TWO_TOOLS, begin, in_second_tool
from tests.journeys.stage import Stage, native, said

AGENTS = ("claude", "codex")


def version(program: Path) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return next(word for word in said.split() if word[0].isdecimal())


def carry(agent: str, before: Path, after: Path) -> tuple[str, bool]:
    """Kill a task with one version and finish it with the other. Return the receipt's verdict, and
    whether the model got the whole conversation under the same id."""
    top = Path(tempfile.mkdtemp(prefix="pv"))
    rehearsal = Rehearsal(TWO_TOOLS).start()
    extra = {"PERDURE_PERMISSIONS": "full", "PERDURE_CHECKPOINT_EVERY": "0.01s"}
    one, two = (
        Stage(
            top / name, agent, rehearsal, extra={**extra, f"PERDURE_{agent.upper()}": str(program)}
        )
        for name, program in (("a", before), ("b", after))
    )
    try:
        supervisor = begin(one)
        in_second_tool(one)
        one.lose_machine(supervisor)
        done = one.perdure("export", "task", "-o", str(two.tmp / "task.capsule"))
        assert done.code == 0, done.err
        done = two.perdure(
            "import", str(two.tmp / "task.capsule"), "--into", str(two.home / "work")
        )
        assert done.code == 0, done.err
        (two.home / "work/go.txt").write_text("")
        done = two.perdure("retry", "task", "--json")
        assert done.code == 0, done.err
        first, last = done.json["attempts"]
        messages = said(rehearsal.requests[-1].messages)
        whole = (
            "quercus" in messages
            and "The attempt before this one ended early" in messages
            and "echo one" in messages
        )
        return last["receipt"]["verdict"], whole and last["session_id"] == first["session_id"]
    finally:
        one.close()
        two.close()
        rehearsal.stop()
        shutil.rmtree(top, ignore_errors=True)


def main(older: Path) -> int:
    print(
        "| agent | killed on | went on with | receipt | same id, whole history "
        "|\n|---|---|---|---|---|"
    )
    good = True
    for agent in AGENTS:
        programs = [native(agent), native(agent, older)]
        for before, after in (programs, programs[::-1]):
            verdict, whole = carry(agent, before, after)
            good = good and whole and verdict == "native"
            print(
                f"| {agent} | {version(before)} | {version(after)} | {verdict} | "
                f"{'yes' if whole else 'no'} |",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
