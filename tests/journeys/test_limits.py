"""Limits of accounts, and agents that do not start, with real programs: which runs are not
launched, what they wait for, and what perdure shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pytest
from msgspec.structs import replace

import perdure
from perdure import store as stores
from perdure.engine.worker import LEFT_ALONE_MS, drive
from perdure.errors import Conflict
from tests.journeys.stage import Stage

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude"])
def agent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def waiting(stage: Stage, name: str, what: str) -> dict:
    """Wait until the queued run's reason has this text, and return the run's row."""

    def row() -> dict | None:
        rows = stage.perdure("ls", "--json").json["runs"]
        return next(
            (
                row
                for row in rows
                if row["name"] == name and row["state"] == "queued" and what in row["reason"]
            ),
            None,
        )

    found: dict = stage.until(row, f"{name} waits: {what}")
    return found


def words(stage: Stage, name: str, *more: str) -> list[str]:
    return [
        "run",
        "--name",
        name,
        "--permissions",
        "full",
        "--json",
        "--agent",
        stage.agent,
        "--service",
        "s",
        "--task",
        name,
        *more,
    ]


def test_a_limited_account_launches_nothing(stage: MakeStage) -> None:
    """After one run has reached the limit, the next run of the account is not launched, not even by
    another supervisor. A person's retry starts it at once."""
    one = stage("match alpha\nlimit 3000\nsay A.\n===\nmatch beta\nsay B.\n", subscription=True)
    alpha = one.start(*words(one, "alpha"), "Do alpha.")
    limited = waiting(one, "alpha", "rate_limited")
    beta = one.start(*words(one, "beta"), "Do beta.")
    parked = waiting(one, "beta", "parked: account claude/")
    assert parked["run_after"] == limited["run_after"] and parked["attempt"] == 0
    for supervisor in (alpha, beta):
        supervisor.kill()
        one.finish(supervisor)
    assert "until 20" in one.perdure("ls").out
    assert "parked: account claude/" in one.perdure("why", "beta").out
    assert any(
        finding["topic"] == "parked"
        for finding in one.perdure("doctor", "--json", "--agent", "claude").json["findings"]
    )
    assert one.rehearsal.prompts() == ["Do alpha."]
    done = one.perdure("retry", "beta", "--json")
    assert done.code == 0, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == ["succeeded"]
    assert "parked" not in one.perdure("doctor", "--agent", "claude").out
    one.nothing_survives()


def test_a_limit_of_the_usual_model(stage: MakeStage) -> None:
    """A run without `--model` meets the limit of the agent's usual model. Only runs without
    `--model` wait for its end; a run with another model is launched."""
    script = "match alpha\nlimit 3000 opus\nsay A.\n===\nmatch beta\nsay B.\n"
    one = stage(script, subscription=True)
    alpha = one.start(*words(one, "alpha"), "Do alpha.")
    limited = waiting(one, "alpha", "Opus limit")
    beta = one.perdure(*words(one, "beta", "--model", "sonnet"), "Do beta.")
    assert beta.code == 0, beta.err
    gamma = one.start(*words(one, "gamma"), "Do gamma.")
    parked = waiting(one, "gamma", "parked: account claude/")
    assert parked["run_after"] == limited["run_after"] and parked["attempt"] == 0
    for supervisor in (alpha, gamma):
        supervisor.kill()
        one.finish(supervisor)
    assert "for runs without --model" in one.perdure("doctor", "--agent", "claude").out
    one.nothing_survives()


def test_an_account_has_so_many_runs_at_work(stage: MakeStage) -> None:
    """Two perdures share one seat. The second run says what it waits for, and begins when the first
    has ended."""
    script = (
        "match Do it now\nrun until test -e ~/go; do sleep 0.1; done\n---\nsay Done.\n===\nmatch "
        "Do it too\nsay Done too.\n"
    )
    one = stage(script, extra={"PERDURE_ACCOUNT_JOBS": "claude=1"})
    first = one.start(*words(one, "first"), "Do it now.")
    one.rehearsal.wait_for(1)
    second = one.start(*words(one, "second"), "Do it too.")
    waiting(one, "second", "1 of 1 runs of account claude/")
    (one.home / "go").touch()
    ended, begun = one.finish(first), one.finish(second)
    assert (ended.code, begun.code) == (0, 0), ended.err + begun.err
    assert begun.json["attempts"][0]["started"] >= ended.json["attempts"][0]["ended"]
    assert [attempt["number"] for attempt in begun.json["attempts"]] == [1]


@pytest.mark.parametrize("waits", ["for its turn", "for a pool"])
def test_a_run_that_waits_for_another_is_followed(stage: MakeStage, waits: str) -> None:
    """A run waits for the only seat of its account, or for the only place of a pool. Commands that
    follow it wait for its end, however long it has been due."""
    script = (
        "match Do it now\nrun until test -e ~/go; do sleep 0.1; done\n---\nsay Done.\n===\nmatch "
        "Do it too\nsay Done too.\n"
    )
    one = stage(script, extra={"PERDURE_ACCOUNT_JOBS": "claude=1"} if "turn" in waits else {})
    if "turn" in waits:
        others = [one.start(*words(one, "first"), "Do it now.")]
        one.rehearsal.wait_for(1)
        others.append(one.start(*words(one, "second"), "Do it too."))
        waiting(one, "second", "1 of 1 runs of account claude/")
    else:
        with perdure.open(cwd=one.repo, environ=one.environ) as runner:
            runner.submit("Do it now.", name="first", agent="claude")
            runner.submit("Do it too.", name="second", agent="claude")
        others = [one.start("work", "--once", "--jobs", "1")]
        one.rehearsal.wait_for(1)
    due = one.perdure("show", "second", "--json").json["updated"]
    one.until(lambda: time.time() * 1000 > due + LEFT_ALONE_MS, "the run has been due for long")
    verbs = (("wait", "second"), ("attach", "second"), ("logs", "-f", "second"))
    following = [one.start(*verb) for verb in verbs]
    asked = one.perdure("wait", "second", "--timeout", "3")
    assert (asked.code, asked.err) == (75, "second is still queued\n")
    (one.home / "go").touch()
    assert [one.finish(each).code for each in following] == [0, 0, 0]
    assert [one.finish(each).code for each in others] == [0] * len(others)


def test_a_seat_whose_supervisor_died_is_free_again(stage: MakeStage) -> None:
    """The supervisor of the run on the only seat is killed, and its agent ends. The supervisor that
    waits for the seat records that end, and begins its own run. A second supervisor of a running
    run does not wait: it reports a conflict."""
    script = (
        "match Do it now\nrun until test -e ~/go; do sleep 0.1; done\n---\nsay Done.\n===\nmatch "
        "Do it too\nsay Done too.\n"
    )
    one = stage(script, extra={"PERDURE_ACCOUNT_JOBS": "claude=1"})
    first = one.start(*words(one, "first"), "Do it now.")
    one.rehearsal.wait_for(1)
    with (
        perdure.open(cwd=one.repo, environ=one.environ) as runner,
        pytest.raises(Conflict, match="already running"),
    ):
        drive(runner._engine, runner.get("first").id)
    second = one.start(*words(one, "second"), "Do it too.")
    waiting(one, "second", "1 of 1 runs of account claude/")
    first.kill()
    one.finish(first)
    (one.home / "go").touch()
    begun = one.finish(second)
    assert begun.code == 0, begun.err
    assert one.perdure("show", "first", "--json").json["state"] == "succeeded"
    one.nothing_survives()


def test_an_agent_that_does_not_start_is_left_alone(stage: MakeStage) -> None:
    """After a broken upgrade a run ends early and asks for a person. After a few such starts the
    agent is not launched for a while."""
    one = stage("say Done.")
    broken = one.tmp / "claude"
    broken.write_text(
        "#!/bin/sh\necho launched >> ~/launches\necho 'SyntaxError: Unexpected token' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    one.environ["PERDURE_CLAUDE"] = str(broken)
    first = one.perdure(*words(one, "first", "--attempts", "9"), "Do it.")
    assert first.code == 3, first.err
    assert len(first.json["attempts"]) == 3
    (condition,) = first.json["conditions"]
    assert (
        "within seconds of its start 3 times in a row" in condition["message"]
        and "SyntaxError" in condition["message"]
    )
    assert one.perdure(*words(one, "second", "--attempts", "2"), "Do it.").code == 1
    third = one.start(*words(one, "third"), "Do it.")
    row = waiting(one, "third", "parked: claude does not start")
    assert row["attempt"] == 0
    third.kill()
    one.finish(third)
    assert "claude does not start" in one.perdure("doctor", "--agent", "claude").out
    assert "SyntaxError" in one.perdure("why", "third").out
    assert (one.home / "launches").read_text().count("launched") == 5


def test_a_budget_holds_over_attempts_and_within_one(stage: MakeStage) -> None:
    """Claude Code stops by itself when the rest of the budget is spent. Then nothing is launched
    until a person allows it."""
    one = stage(
        "by history\nusage in=90000 out=10\nrun echo one > one.txt\n---\nusage in=90000 "
        "out=10\nsay Done.\n---\nsay Again.\n"
    )
    more = (
        "--model",
        "claude-opus-5",
        "--budget-usd",
        "0.2",
        "--verify",
        "test -e two.txt || exit 3",
    )
    spent = one.perdure(*words(one, "task", *more), "Write one.txt.")
    assert spent.code == 3, spent.err
    assert spent.json["attempts"][-1]["outcome"]["kind"] == "budget_spent"
    assert len(spent.json["attempts"]) == 1 and len(one.rehearsal.requests) == 1
    assert spent.json["usage"]["cost_usd"] >= 0.2
    assert "budget" in spent.json["conditions"][0]["message"]


OLD = (
    "by history\nusage in=400000 out=10\nsay I know it all.\n---\nusage in=400000 out=10\nsay I "
    "went on.\n---\nsay I went on again.\n"
)


def left_alone(stage: Stage, hours: int) -> None:
    """Make the conversation look unused for this long."""
    with closing(stores.open(stage.state / "perdure.db")) as store:
        [session] = store.sessions()
        store.put_session(replace(session, updated=session.updated - hours * 3_600_000))


def test_a_person_is_asked_before_the_dearest_request(stage: MakeStage) -> None:
    """With `ask`, nothing of a long conversation that was unused for hours reaches the model before
    a person's retry. Then it continues natively."""
    one = stage(OLD, extra={"PERDURE_COLD_CACHE": "ask"})
    assert one.perdure(*words(one, "task", "--model", "claude-opus-5"), "Learn it.").code == 0
    left_alone(one, 3)
    asked = one.perdure("update", "task", "Go on.", "--json")
    assert asked.code == 3, asked.err
    assert len(one.rehearsal.prompts()) == 1
    assert "resume $" in asked.json["reason"] and "perdure retry" in asked.json["reason"]
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert (last["continuation"], last["receipt"]["verdict"]) == ("resume", "native")
    assert last["prices"]["resume"] > last["prices"]["fresh"] > 0
    assert "3 h" in one.perdure("why", "task").out


def test_the_cheapest_way_is_a_persons_choice(stage: MakeStage) -> None:
    """By default the cold conversation continues. With `cheapest` a new one with a brief replaces
    it, and the receipt says so."""
    one = stage(OLD.replace("by history\n", ""))
    assert one.perdure(*words(one, "task", "--model", "claude-opus-5"), "Learn it.").code == 0
    left_alone(one, 3)
    first = one.perdure("update", "task", "Go on.", "--json").json["attempts"][1]
    assert (first["continuation"], first["receipt"]["verdict"]) == ("resume", "native")
    left_alone(one, 3)
    one.environ["PERDURE_COLD_CACHE"] = "cheapest"
    done = one.perdure("update", "task", "Go on once more.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert (last["continuation"], last["receipt"]["verdict"], last["lost_session_id"]) == (
        "rebuild",
        "rebuilt",
        first["session_id"],
    )
    assert "costs less than continuing" in last["why"]
    assert (
        "I know it all." in one.rehearsal.prompts()[-1]
        and "Go on once more." in one.rehearsal.prompts()[-1]
    )


def test_a_cold_conversation_is_compacted_first(stage: MakeStage) -> None:
    """With `compact` the CLI shortens a cold conversation at the start of the attempt if that costs
    less. The conversation continues natively."""
    one = stage(OLD, extra={"PERDURE_COLD_CACHE": "compact"})
    assert one.perdure(*words(one, "task", "--model", "claude-opus-5"), "Learn it.").code == 0
    left_alone(one, 3)
    done = one.perdure("update", "task", "Go on.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][-1]
    assert (last["continuation"], last["receipt"]["verdict"]) == ("resume", "native")
    assert last["prices"]["compact"] < last["prices"]["resume"]
    assert '"compacted"' in one.perdure("logs", "task", "--json").out
