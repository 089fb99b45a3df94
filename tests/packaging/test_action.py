"""The reusable action and the workflows. The action's script is run; everything else is checked as
text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.agents.rehearsal import Rehearsal
from tests.journeys.stage import Stage
from tests.patience import PATIENCE_S

TOP = Path(__file__).parents[2]
SCRIPT = """by history
run echo begun > one.txt; test -e again.txt || { touch again.txt; kill -9 $PPID; sleep 60; }
---
say It went on.
say ::set-output name=state::forged
---
say More is done.
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="pg"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def job(stage: Stage, directory: Path, **given: str) -> tuple[int, dict[str, str], str]:
    """Run the action's script as a job on this machine. Return exit code, outputs and summary."""
    output, summary = stage.directory / "output", stage.directory / "summary"
    for path in (output, summary):
        path.write_text("")
    done = subprocess.run(
        ["bash", str(TOP / "packaging/action/task.sh")],
        cwd=stage.repo,
        env={
            **stage.environ,
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            "TASK_NAME": "fix",
            "TASK_DIRECTORY": str(directory),
            "TASK_PERMISSIONS": "full",
            **given,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    print(done.stdout, done.stderr)
    values = re.findall(r"^(\w+)<<(\w+)\n(.*?)\n\2$", output.read_text(), re.M | re.S)
    return done.returncode, {name: value for name, _, value in values}, summary.read_text()


def test_a_task_goes_on_in_another_job(scratch: Path) -> None:
    """A job whose agent is killed fails and leaves a capsule. A job on another machine, with a
    clone of the repository and that capsule, continues the conversation natively. With new
    instructions it updates the run. The agent's answer stays one output value. The other job runs
    its own check, and not the check in the capsule."""
    with Rehearsal(SCRIPT) as rehearsal:
        one = Stage(scratch / "one", "claude", rehearsal)
        kept = scratch / "kept"
        code, outputs, _ = job(
            one, kept, TASK_PROMPT="-- Write one.txt.", TASK_ATTEMPTS="1", TASK_AGENT="claude",
            TASK_VERIFY="touch theirs.txt",
        )  # fmt: skip
        assert (code, outputs["state"], outputs["code"]) == (1, "failed", "1")
        assert Path(outputs["capsule"]) == kept / "fix.capsule"
        two_repo = scratch / "two" / "repo"
        subprocess.run(["git", "clone", "-q", str(one.repo), str(two_repo)], check=True)
        two = Stage(scratch / "two", "claude", rehearsal)
        code, outputs, summary = job(two, kept, TASK_VERIFY="touch ours.txt")
        assert (code, outputs["state"]) == (0, "succeeded")
        assert outputs["result"] == "It went on.\n::set-output name=state::forged"
        assert "Conversation by attempt: fresh, native" in summary
        workdir = Path(outputs["workdir"])
        assert (workdir / "one.txt").read_text() == "begun\n"
        assert (workdir / "ours.txt").exists() and not (workdir / "theirs.txt").exists()
        code, outputs, summary = job(two, kept, TASK_PROMPT="Do more.")
        assert (code, outputs["result"]) == (0, "More is done.")
        assert "native, native" in summary
        assert [path.name for path in kept.glob("*.capsule")] == ["fix.capsule"]
        for stage in (one, two):
            stage.nothing_survives()
            stage.close()


def read(name: str) -> Any:
    return yaml.safe_load((TOP / name).read_text())


def test_the_action_passes_every_input() -> None:
    """Every input of the action reaches the script or a step. No input is inserted into a shell
    command, because strangers may write prompts and names."""
    action = read("action.yml")
    steps = action["runs"]["steps"]
    used = set(re.findall(r"\$\{\{ inputs\.([\w-]+)", str(steps))) | set(
        re.findall(r"inputs\.([\w-]+)", " ".join(str(step.get("if", "")) for step in steps))
    )
    assert used == set(action["inputs"])
    for step in steps:
        assert "${{" not in step.get("run", ""), step["name"]
    script = (TOP / "packaging/action/task.sh").read_text()
    given = next(step["env"] for step in steps if step.get("id") == "task")
    names = set(re.findall(r"\bTASK_[A-Z_]+\b", script))
    assert names == {name for name in given if name.startswith("TASK_")}
    for output in action["outputs"]:
        assert f'"{output}": ' in script


def test_the_workflows_call_the_targets() -> None:
    """Every `make` of a workflow is a target of the Makefile, and the nightly workflow runs the
    same targets as `.ci/nightly`. No workflow may write to the repository, and only the release
    gets a token of PyPI."""
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    texts = {path.name: path.read_text() for path in (TOP / ".github/workflows").iterdir()}
    for name, text in texts.items():
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", text):
            assert target in targets, f"{name}: make {target}"
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        for words in re.findall(r"run: (.*)", text):
            assert "${{ github" not in words, f"{name}: {words}"
    nightly = yaml.safe_load(texts["nightly.yml"])["jobs"]["nightly"]["strategy"]["matrix"]
    local = re.search(r"^for target in (.*); do$", (TOP / ".ci/nightly").read_text(), re.M)
    assert local is not None
    there = [one or two for one, two in re.findall(r'"([^"]+)"|(\S+)', local[1])]
    assert nightly["target"] == [*there, "agents-latest"]
    assert [name for name, text in texts.items() if "id-token" in text] == ["release.yml"]
    assert os.access(TOP / "packaging/action/task.sh", os.X_OK)
