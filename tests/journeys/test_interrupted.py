"""Reports about a run whose supervisor is gone, with or without its agent, for the real agents and
in every place that shows runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from tests.journeys.stage import Stage

pytestmark = pytest.mark.journey

MakeStage = Callable[..., Stage]
WAITS = """by history
run until test -e go; do sleep 0.1; done; echo one > one.txt
---
say It is done.
"""


def in_its_tool(stage: MakeStage) -> tuple[Stage, Any]:
    """Start a run and wait until its agent is in a tool call. Return the stage and the supervisor's
    process."""
    one = stage(WAITS)
    words = ("--json", "--agent", one.agent, "--permissions", "full")
    started = one.start("run", "--name", "task", *words, "Write one.txt.")
    one.rehearsal.wait_for(1)
    stdout = one.attempt_directory(1) / "stdout"
    one.until(
        lambda: any(mark in stdout.read_bytes() for mark in (b'"tool_use"', b"item.started")),
        "the agent is in its tool",
    )
    return one, started


def liveness(one: Stage) -> set[str | None]:
    """Return the different values of the run's liveness in all JSON reports."""
    (row,) = one.perdure("ls", "--json").json["runs"]
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        found = runner.liveness("task")
        report = runner.report("task")["liveness"]
    why = one.perdure("why", "task", "--json").json["liveness"]
    assert row["state"] == one.show()["state"]
    return {row["liveness"], one.show()["liveness"], why, found and str(found), report}


def go_on(one: Stage) -> None:
    """Run the `retry` that perdure proposed, which completes the run."""
    (one.repo / one.show()["workspace"]["path"] / "go").touch()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    assert liveness(one) == {None} and done.json["liveness"] is None
    assert "interrupted" not in one.perdure("ls").err
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_a_run_is_interrupted_when_everything_is_dead(stage: MakeStage, agent: str) -> None:
    """As after a power cut: every place that shows the run says so and names the next command.
    Commands that follow the run do not hang."""
    one, started = in_its_tool(stage)
    assert liveness(one) == {"attended"}
    one.lose_machine(started)
    assert liveness(one) == {"interrupted"}
    listed = one.perdure("ls")
    assert "interrupted" in listed.out and "running" not in listed.out
    assert listed.err.strip() == "1 run was interrupted: perdure retry task"
    for verb in ("show", "why"):
        shown = one.perdure(verb, "task").out
        assert "interrupted" in shown and "perdure retry task" in shown and "running" not in shown
    for words in (("logs", "-f", "task"), ("logs", "-f", "--raw", "task")):
        followed = one.perdure(*words)
        assert (followed.code, followed.err.strip()) == (
            75,
            "task was interrupted: perdure retry task continues where it stopped",
        )
    assert one.perdure("attach", "task").code == 75
    go_on(one)


@pytest.mark.parametrize("agent", ["claude"])
def test_a_due_run_that_no_worker_claims_is_not_followed_for_ever(
    stage: MakeStage, agent: str
) -> None:
    """If a program submits a run and starts no worker, commands that follow the run end with
    advice."""
    one = stage(WAITS)
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        runner.submit("Write one.txt.", name="task", agent=agent)
    for words in (("logs", "-f", "task"), ("logs", "-f", "--raw", "task")):
        followed = one.perdure(*words)
        assert (followed.code, followed.err.strip()) == (
            75,
            "task is due, but no worker has claimed it: perdure retry task continues it",
        )
    assert one.perdure("attach", "task").code == 75


@pytest.mark.parametrize("agent", ["claude", "codex"])
@pytest.mark.parametrize("victims", ["supervisor", "supervisor and shim"])
def test_a_run_is_unattended_when_its_agent_works_on(
    stage: MakeStage, agent: str, victims: str
) -> None:
    """If only perdure was killed, or perdure and the agent's parent, the agent continues. The
    reports say that it has no supervisor."""
    one, started = in_its_tool(stage)
    started.kill()
    if "shim" in victims:
        os.kill(one.shim_pid(), signal.SIGKILL)
    one.finish(started)
    assert liveness(one) == {"unattended"}
    assert (
        one.perdure("ls").err.strip()
        == "1 run has no supervisor, but its agent still runs: perdure retry task"
    )
    followed = one.perdure("logs", "-f", "task")
    assert followed.code == 75 and "its agent still runs" in followed.err
    if victims == "supervisor":
        go_on(one)


@pytest.mark.parametrize("agent", ["claude"])
def test_a_stopped_supervisor_is_no_dead_one(stage: MakeStage, agent: str) -> None:
    """If a supervisor is stopped (SIGSTOP), it loses its lease, but the run is still shown as
    running. The run continues when the supervisor does."""
    one = stage(WAITS, extra={"PERDURE_LEASE": "3s"})
    started = one.start(
        "run",
        "--name",
        "task",
        "--json",
        "--agent",
        one.agent,
        "--permissions",
        "full",
        "Write one.txt.",
    )
    one.rehearsal.wait_for(1)
    started.send_signal(signal.SIGSTOP)
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        store = runner._engine.store
        one.until(lambda: store.get("task").lease_until < store.now(), "the lease is over")
    assert liveness(one) == {"attended"}
    assert "running" in one.perdure("ls").out and not one.perdure("ls").err
    started.send_signal(signal.SIGCONT)
    (one.repo / one.show()["workspace"]["path"] / "go").touch()
    done = one.finish(started)
    assert done.code == 0, done.err
    assert json.loads(done.out)["liveness"] is None


@pytest.mark.parametrize("agent", ["codex"])
def test_a_task_of_a_plan_is_interrupted_when_everything_is_dead(
    stage: MakeStage, agent: str
) -> None:
    """`plan show` and the library report the plan and its task as interrupted. `plan run`
    continues."""
    one = stage(WAITS)
    plan = one.directory / "shop.toml"
    head = f'name = "shop"\nagent = "{agent}"\npermissions = "full"\n'
    plan.write_text(head + '[[tasks]]\nname = "one"\nprompt = "Write one.txt."\n')
    started = one.start("plan", "run", str(plan), "--json")
    one.rehearsal.wait_for(1)
    one.lose_machine(started)
    shown = one.perdure("plan", "show", "shop", "--json").json
    (task,) = shown["tasks"]
    assert (shown["state"], task["state"], task["liveness"]) == (
        "stopped",
        "running",
        "interrupted",
    )
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        assert runner.plan_report("shop")["tasks"][0]["liveness"] == "interrupted"
    line = one.perdure("plan", "show", "shop").out.partition("\none ")[2].partition("\n")[0]
    assert "interrupted" in line and "running" not in line
    (Path(one.show(task["run"])["workspace"]["path"]) / "go").touch()
    done = one.perdure("plan", "run", str(plan), "--json")
    assert (done.code, done.json["tasks"][0]["liveness"]) == (0, None), done.err
