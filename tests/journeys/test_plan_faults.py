"""Mistakes of a person around a plan: names that collide, files that change, and how the person can
continue after each failure."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import perdure
from perdure.engine.plan_file import read_plan, seed_of
from perdure.engine.plans import driver
from perdure.engine.plans.creation import begin
from perdure.errors import StoreError
from perdure.rules.plan import PlanRun, PlanState
from tests.journeys.stage import Stage

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey

SCRIPT = """by history
run echo one > one.txt
---
say It is done.
"""


@pytest.fixture
def agent() -> str:
    """Return the CLI of these tests."""
    return "claude"


def write(one: Stage, name: str, *tasks: str, head: str = "") -> Path:
    """Write a plan beside the repository and return its path. Each task is given as its lines of
    TOML."""
    path = one.directory / f"{name}.toml"
    body = [
        f'name = "{name}"\nagent = "claude"\npermissions = "full"\n{head}',
        *(f"\n[[tasks]]\n{task}" for task in tasks),
    ]
    path.write_text("\n".join(body))
    return path


def test_plans_do_not_meet_by_their_names(stage: MakeStage) -> None:
    """A plan with the name of one that began in another repository is refused, and the error names
    that repository. If the joined names of plan and task are equal for two plans, and for the name
    of a run, each still has its own branch and workdir."""
    one = stage(SCRIPT)
    begun = one.perdure(
        "plan", "run", str(write(one, "a", 'name = "b-c"\nprompt = "Do it."')), "--json"
    )
    assert begun.code == 0, begun.err
    beside = one.perdure(
        "plan", "run", str(write(one, "a-b", 'name = "c"\nprompt = "Do it."')), "--json"
    )
    assert beside.code == 0, beside.err
    assert one.perdure("run", "--agent", "claude", "--name", "x-y", "Do it.").code == 0
    third = one.perdure(
        "plan", "run", str(write(one, "x", 'name = "y"\nprompt = "Do it."')), "--json"
    )
    assert third.code == 0, third.err
    places = {done.json["result"]["path"] for done in (begun, beside, third)} | {
        one.show("x-y")["workspace"]["path"]
    }
    assert len(places) == 4
    one.repo = one.directory / "other"
    one.repo.mkdir()
    one.make_repository()
    requests = len(one.rehearsal.requests)
    refused = one.perdure("plan", "run", str(one.directory / "a.toml"))
    assert (refused.code, len(one.rehearsal.requests)) == (6, requests)
    assert f"was started in {one.directory / 'repo'}" in refused.err
    one.repo = one.directory / "bare ground"
    one.repo.mkdir()
    again = one.perdure("plan", "run", str(one.directory / "a.toml"), "--json")
    assert again.code == 0 and again.json["name"] == "a", again.err
    other = one.repo / "a.toml"
    other.write_text((one.directory / "a.toml").read_text())
    refused = one.perdure("plan", "run", str(other))
    assert (refused.code, len(one.rehearsal.requests), refused.out) == (6, requests, "")
    assert (
        f"was started in {one.directory / 'repo'}" in refused.err
        and f"cd {one.directory / 'repo'}" in refused.err
    )
    one.nothing_survives()


def test_tasks_with_upper_case(stage: MakeStage) -> None:
    """A task may have upper-case letters in its name. Two names that differ only in case are
    refused."""
    one = stage(SCRIPT)
    plan = write(
        one,
        "shop",
        'name = "Models"\nprompt = "Begin."',
        'name = "API-2"\nneeds = ["Models"]\nprompt = "Go on."',
    )
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 0, done.err
    assert {task["name"]: task["run"] for task in done.json["tasks"]} == {
        "Models": "shop-models",
        "API-2": "shop-api-2",
    }
    twice = write(
        one, "twice", 'name = "Models"\nprompt = "Begin."', 'name = "models"\nprompt = "Go on."'
    )
    refused = one.perdure("plan", "check", str(twice))
    assert refused.code == 2 and "the task 'Models' exists already" in refused.err
    one.nothing_survives()


def test_a_plan_does_not_begin_on_old_work(stage: MakeStage) -> None:
    """If the repository has branches of a plan that this database does not know, nothing is
    started, and the error names the branch."""
    one = stage(SCRIPT)
    plan = write(one, "shop", 'name = "one"\nprompt = "Begin."')
    subprocess.run(["git", "branch", "perdure/shop_one"], cwd=one.repo, check=True)
    refused = one.perdure("plan", "run", str(plan))
    assert (refused.code, len(one.rehearsal.requests)) == (
        6,
        0,
    ) and "already has a branch perdure/shop_one" in refused.err
    subprocess.run(["git", "branch", "-m", "perdure/shop_one", "old"], cwd=one.repo, check=True)
    assert one.perdure("plan", "run", str(plan)).code == 0


def test_a_wrong_check_is_mended_in_the_file(stage: MakeStage) -> None:
    """A task that failed because of a wrong `verify` continues in its conversation after the file
    has the right one. Limits for all tasks may be raised even if some tasks are done."""
    one = stage(SCRIPT)
    two = 'name = "two"\nneeds = ["one"]\nprompt = "Go on."\nattempts = 1\nverify = "{}"'
    plan = write(one, "shop", 'name = "one"\nprompt = "Begin."', two.format("false"))
    assert one.perdure("plan", "run", str(plan)).code == 1
    write(
        one,
        "shop",
        'name = "one"\nprompt = "Begin."',
        two.format("test -e one.txt"),
        head='timeout = "2h"',
    )
    done = one.perdure("plan", "retry", str(plan), "--json")
    assert done.code == 0, done.err
    assert [task["state"] for task in done.json["tasks"]] == ["succeeded", "succeeded"]
    assert len({task["session_id"] for task in done.json["tasks"]}) == 1
    with perdure.open(one.repo, one.environ) as runner:
        spec = runner.get("shop-two").spec
        assert (spec.verify, spec.timeout_s) == ("test -e one.txt", 7200.0)
    one.nothing_survives()


def test_a_plan_that_has_not_begun_may_move(stage: MakeStage) -> None:
    """As long as no task has begun, the plan runs in the repository that its file names now."""
    one = stage(SCRIPT)
    first = one.repo
    one.repo = one.directory / "other"
    one.repo.mkdir()
    one.make_repository()
    another = [
        "-c",
        "user.name=Ada",
        "-c",
        "user.email=ada@example.invalid",
        "commit",
        "-q",
        "--amend",
        "-m",
        "another beginning",
    ]
    subprocess.run(["git", *another], cwd=first, check=True)
    one.repo, other = first, one.repo
    plan = write(one, "shop", 'name = "one"\nprompt = "Begin."', head=f'repo = "{first}"')
    with perdure.open(
        first, one.environ
    ) as runner:  # as if the process ended before the first task
        begin(
            runner._engine,
            read_plan(plan, runner._settings),
            seed_of(runner._settings, first),
            plan,
        )
    write(one, "shop", 'name = "one"\nprompt = "Begin."', head=f'repo = "{other}"')
    done = one.perdure("plan", "run", str(plan), "--json")
    assert done.code == 0, done.err
    assert done.json["repo"] == str(other)
    branch = done.json["result"]["branch"]
    shown = subprocess.run(
        ["git", "show", f"{branch}:one.txt"], cwd=other, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "one\n"
    one.nothing_survives()


def test_a_plan_keeps_to_its_budget(stage: MakeStage) -> None:
    """When the tasks together have spent the budget, no further task begins and a person is asked.
    A higher budget in the file lets the plan continue. Each run gets what is left of the budget."""
    one = stage(SCRIPT)
    tasks = [f'name = "{name}"\nprompt = "Do {name}."' for name in ("one", "two", "three")]
    plan = write(one, "shop", *tasks, head="budget_usd = 0.0015")  # each task costs 0.00108
    spent = one.perdure("plan", "run", str(plan), "--json")
    assert spent.code == 3, spent.err
    assert [task["state"] for task in spent.json["tasks"]] == ["succeeded", "succeeded", "ready"]
    assert spent.json["spent_usd"] >= 0.0015 and "the budget is spent" in spent.json["reason"]
    write(one, "shop", *tasks, head="budget_usd = 5")
    assert "$5.00" not in one.perdure("plan", "show", "shop").out
    done = one.perdure("plan", "retry", str(plan), "--json")
    assert (done.code, done.json["budget_usd"]) == (0, 5.0), done.err
    with perdure.open(one.repo, one.environ) as runner:
        assert 4.9 < runner.get("shop-three").spec.budget_usd < 5.0
    assert "budget      $5.00" in one.perdure("plan", "show", "shop").out
    one.nothing_survives()


def fails_at(runner: perdure.Runner, what: str) -> sqlite3.Connection:
    """Make the database refuse the next change of this kind in the plan, as if the process were
    killed just before it."""
    connection: sqlite3.Connection = runner._engine.store._database.connection  # type: ignore[attr-defined]
    connection.create_function("cut_off", 0, lambda: 1 // 0)
    connection.execute(f"CREATE TEMP TRIGGER trouble BEFORE {what} BEGIN SELECT cut_off(); END")
    return connection


def drive(runner: perdure.Runner, plan: Path) -> PlanRun:
    settings = runner._settings
    return driver.retry(
        runner._engine,
        "shop",
        changed=(read_plan(plan, settings), seed_of(settings, plan.parent / "repo"), plan),
    )


def test_changed_instructions_are_given_once_however_often_it_is_cut_off(stage: MakeStage) -> None:
    """The file has new prompts for two tasks that failed. The database fails while the plan stores
    them, so neither prompt is given. When the plan runs again, each is given once."""
    one = stage(SCRIPT)
    tasks = (
        'name = "one"\nprompt = "{}"\nfiles = ["x"]\nattempts = 1',
        'name = "two"\nprompt = "{}"\nfiles = ["y"]\nattempts = 1',
    )
    plan = write(one, "shop", *(task.format("Begin.") for task in tasks))
    assert one.perdure("plan", "run", str(plan)).code == 1
    write(one, "shop", *(task.format("Now do it right.") for task in tasks))
    with perdure.open(one.repo, one.environ) as runner:
        connection = fails_at(runner, "UPDATE OF body ON main.plans")
        with pytest.raises(StoreError):
            drive(runner, plan)
        runs = [
            each.run for each in runner._engine.store.planned(runner._engine.store.plan("shop").id)
        ]
        assert [len(runner._engine.store.contexts(run)) for run in runs] == [1] * len(runs)
        connection.execute("DROP TRIGGER trouble")
        drive(runner, plan)
        assert [
            [context.text for context in runner._engine.store.contexts(run)] for run in runs
        ] == [["Begin.", "Now do it right."]] * len(runs)
    one.nothing_survives()


def test_a_failed_check_is_told_once_however_often_it_is_cut_off(stage: MakeStage) -> None:
    """The plan's own check failed, and the database fails while that is recorded, so the agent gets
    no message. When the plan runs again, the agent gets it once, and that counts as one
    correction."""
    one = stage("by history\nsay It is done.\n---\nrun echo one > one.txt\n---\nsay It is right.\n")
    plan = write(one, "shop", 'name = "one"\nprompt = "Begin."', head='verify = "test -e one.txt"')
    with perdure.open(one.repo, one.environ) as runner:
        settings, store = runner._settings, runner._engine.store
        begin(runner._engine, read_plan(plan, settings), seed_of(settings, one.repo), plan)
        connection = fails_at(
            runner, "UPDATE ON main.planned_runs WHEN json_extract(NEW.body, '$.checks') = 1"
        )
        with pytest.raises(StoreError):
            drive(runner, plan)
        (planned,) = store.planned(store.plan("shop").id)
        assert (planned.checks, len(store.contexts(planned.run))) == (0, 1)
        connection.execute("DROP TRIGGER trouble")
        assert drive(runner, plan).state is PlanState.SUCCEEDED
        (planned,) = store.planned(store.plan("shop").id)
        assert (planned.checks, len(store.contexts(planned.run))) == (1, 2)
    assert sum("its check" in prompt for prompt in one.rehearsal.prompts()) == 1
    one.nothing_survives()
