"""Plans at work on the real CLIs: one conversation, branches that fork and meet again, and nothing done twice whatever is killed.

What was said is asserted on the messages that reached the model.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.stage import Done, Stage, said

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey

LINE = """by history
run echo one > one.txt
---
say The first file is written.
---
run echo two > two.txt
---
say The second file is written.
---
run echo three > three.txt
---
say The third file is written.
"""


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    """The CLIs that fork."""
    return str(request.param)


def write(one: Stage, *tasks: str, head: str = "") -> Path:
    """A plan file beside the repository; each task is `name: needs: prompt`, with more lines of TOML behind a newline."""
    lines = ['name = "shop"', f'agent = "{one.agent}"', 'permissions = "full"', f'repo = "{one.repo}"', head]
    for text in tasks:
        first, _, more = text.partition("\n")
        name, needs, prompt = (part.strip() for part in first.split(":", 2))
        lines += ["", "[[tasks]]", f'name = "{name}"', f"prompt = {json.dumps(prompt)}", f"needs = {json.dumps(needs.split())}", more]
    path = one.directory / "plan.toml"
    path.write_text("\n".join(lines))
    return path


def git(one: Stage, *words: str, cwd: Path | str | None = None) -> str:
    return subprocess.run(["git", *words], cwd=cwd or one.repo, env=one.environ, capture_output=True, text=True, check=True).stdout.strip()


def tasks_of(done: Done) -> dict[str, dict[str, Any]]:
    assert done.out, done.err
    return {task["name"]: task for task in done.json["tasks"]}


THREE = ("a:: Write the first file. The magic word is quercus.", "b:a: Write the second file.", "c:b: Write the third file.")


def test_a_line_is_one_conversation(stage: MakeStage) -> None:
    """Three tasks: one session, one workdir, each prompt as it was written, and the model is shown all that was said before."""
    one = stage(LINE)
    plan = write(one, *THREE)
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 0, done.err
    tasks = tasks_of(done)
    assert [tasks[name]["verdict"] for name in "abc"] == ["fresh", "native", "native"]
    assert len({task["session_id"] for task in tasks.values()}) == 1
    assert len({task["path"] for task in tasks.values()}) == 1
    assert one.rehearsal.prompts() == [
        "Write the first file. The magic word is quercus.",
        "Write the second file.",
        "Write the third file.",
    ]
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "The first file is written." in shown and "The second file is written." in shown
    result = done.json["result"]
    assert git(one, "ls-tree", "--name-only", result["branch"]).split() == ["greet.py", "one.txt", "three.txt", "two.txt"]
    assert git(one, "status", "--porcelain", cwd=result["path"]) == ""
    assert git(one, "log", "-1", "--format=%an", result["branch"]) == f"{one.agent} (perdure)"
    requests = len(one.rehearsal.requests)
    again = one.perdure("plan", "run", str(plan), "--json")
    assert (again.code, again.json["state"], len(one.rehearsal.requests)) == (0, "succeeded", requests)
    assert one.perdure("plan", "show", "shop").code == 0
    one.nothing_survives()
