"""Plans at the command line: all problems are reported before anything runs, and the verbs show
which tasks share a conversation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = """name = "shop"

[[tasks]]
name = "models"
prompt = "Write the models."

[[tasks]]
name = "views"
prompt = "Write the views."
needs = ["models"]

[[tasks]]
name = "admin"
prompt = "Write the admin pages."
needs = ["models"]

[[tasks]]
name = "docs"
agent = "codex"
prompt = "Write the documents."
needs = ["views", "admin"]
"""


def perdure(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"HOME": str(directory), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-m", "perdure", *words],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_a_plan_is_checked(plan: Path) -> None:
    """For a valid plan one line is printed. For an invalid one a line is printed for each problem,
    with its place, and the exit code is 2. Nothing is made."""
    assert (
        perdure(plan.parent, "plan", "check", "plan.toml").stdout
        == "shop: 4 task(s) in 3 conversation(s), valid\n"
    )
    plan.write_text(PLAN.replace('needs = ["models"]', 'needs = ["docs", "gone"]', 1))
    done = perdure(plan.parent, "plan", "check", "plan.toml")
    assert done.returncode == 2
    assert "plan.toml:10: 'views' needs 'gone', which does not exist" in done.stderr
    assert "plan.toml:10: these tasks need each other: views -> docs -> views" in done.stderr
    plan.write_text(PLAN.replace("codex", "nobody"))
    done = perdure(plan.parent, "plan", "check", "plan.toml")
    assert (done.returncode, "There is no agent named 'nobody'" in done.stderr) == (5, True)
    assert [path.name for path in plan.parent.iterdir()] == ["plan.toml"]


def test_a_plan_is_drawn(plan: Path) -> None:
    """The tree for a terminal, the drawing for a document and the JSON for a program agree on which
    tasks continue, fork and merge."""
    lines = [
        line.split(maxsplit=2)
        for line in perdure(plan.parent, "plan", "graph", "plan.toml").stdout.splitlines()
    ]
    assert lines == [
        ["models", "claude", "starts a conversation"],
        ["views", "claude", "continues after models"],
        ["admin", "claude", "forks models"],
        ["docs", "codex", "starts a conversation with the files of views, merges admin"],
    ]
    drawn = perdure(plan.parent, "plan", "graph", "plan.toml", "--format", "mermaid").stdout
    assert all(
        line in drawn for line in ("flowchart TD", "t0 ==> t1", "t0 -. fork .-> t2", "t1 --> t3")
    )
    told = json.loads(perdure(plan.parent, "plan", "graph", "plan.toml", "--json").stdout)
    assert [(task["name"], task["conversation"]) for task in told["tasks"]] == [
        ("models", "models"),
        ("views", "models"),
        ("admin", "admin"),
        ("docs", "docs"),
    ]


def test_the_plan_in_the_documents_is_a_plan(tmp_path: Path) -> None:
    """The tutorial's file is a valid plan, and is drawn as in the tutorial."""
    page = (Path(__file__).parents[2] / "docs/how-to/plans.md").read_text()
    (tmp_path / "shop.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    drawn = page.partition("```text\n")[2].partition("```")[0]
    assert perdure(tmp_path, "plan", "graph", "shop.toml").stdout == drawn


def test_what_is_asked_wrongly_is_told(tmp_path: Path) -> None:
    """A missing file, one name too many, and an unknown plan are each refused with one sentence and
    the right exit code."""
    for words, code in (
        (("run",), 2),
        (("show", "shop", "more"), 2),
        (("ls", "shop"), 2),
        (("show", "shop"), 5),
        (("retry", "shop"), 5),
    ):
        done = perdure(tmp_path, "plan", *words)
        assert (done.returncode, done.stderr.count("\n") <= 2) == (code, True), done.stderr
    assert (
        perdure(tmp_path, "plan", "ls").stdout == ""
    )  # a sentence only on a terminal, as with `perdure ls`


def test_agents_that_cannot_fork_are_one_line(plan: Path) -> None:
    """If the agent's program cannot fork into another directory, the branches continue in one
    conversation, or begin with a brief."""
    text = PLAN.replace('agent = "codex"\n', "").replace(
        'name = "shop"', 'name = "shop"\nagent = "opencode"'
    )
    plan.write_text(text)
    drawn = [
        line.split(maxsplit=2)[2]
        for line in perdure(plan.parent, "plan", "graph", "plan.toml").stdout.splitlines()
    ]
    assert drawn == [
        "starts a conversation",
        "continues after models",
        "continues after views, instead of a fork",
        "continues after admin",
    ]
    plan.write_text(text.replace('agent = "opencode"', 'agent = "opencode"\nunforkable = "brief"'))
    assert (
        "starts with a brief of models, instead of a fork"
        in perdure(plan.parent, "plan", "graph", "plan.toml").stdout
    )
