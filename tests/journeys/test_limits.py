"""Limits of accounts and agents that do not start, with real programs: who is not launched, who waits for whom, and what a person sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.journeys.stage import Stage

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey


@pytest.fixture(params=["claude"])
def agent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def waiting(stage: Stage, name: str, what: str) -> dict:
    """The row of a queued run, as soon as its reason says that."""

    def row() -> dict | None:
        rows = stage.perdure("ls", "--json").json["runs"]
        return next((row for row in rows if row["name"] == name and row["state"] == "queued" and what in row["reason"]), None)

    found: dict = stage.until(row, f"{name} waits: {what}")
    return found


def words(stage: Stage, name: str, *more: str) -> list[str]:
    return ["run", "--name", name, "--permissions", "full", "--json", "--agent", stage.agent, "--service", "s", "--task", name, *more]


def test_a_limited_account_launches_nothing(stage: MakeStage) -> None:
    """One run meets the limit: the next of the account is not launched, survives its supervisor, and a person's retry tries at once."""
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
    assert any(finding["topic"] == "parked" for finding in one.perdure("doctor", "--json", "--agent", "claude").json["findings"])
    assert one.rehearsal.prompts() == ["Do alpha."]
    done = one.perdure("retry", "beta", "--json")
    assert done.code == 0, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == ["succeeded"]
    assert "parked" not in one.perdure("doctor", "--agent", "claude").out
    one.nothing_survives()


def test_an_account_has_so_many_runs_at_work(stage: MakeStage) -> None:
    """Two perdures, one seat: the second run says for what it waits, and begins when the first has ended."""
    one = stage("slow 3\nsay Done.\n---\nsay Done too.\n", extra={"PERDURE_ACCOUNT_JOBS": "claude=1"})
    first = one.start(*words(one, "first"), "Do it.")
    one.rehearsal.wait_for(1)
    second = one.start(*words(one, "second"), "Do it too.")
    waiting(one, "second", "1 of 1 runs of account claude/")
    ended, begun = one.finish(first), one.finish(second)
    assert (ended.code, begun.code) == (0, 0), ended.err + begun.err
    assert begun.json["attempts"][0]["started"] >= ended.json["attempts"][0]["ended"]
    assert [attempt["number"] for attempt in begun.json["attempts"]] == [1]


def test_an_agent_that_does_not_start_is_left_alone(stage: MakeStage) -> None:
    """A broken upgrade: a run ends early and asks a person, and after a few starts of others the agent is launched no more for a while."""
    one = stage("say Done.")
    broken = one.tmp / "claude"
    broken.write_text("#!/bin/sh\necho launched >> ~/launches\necho 'SyntaxError: Unexpected token' >&2\nexit 1\n")
    broken.chmod(0o755)
    one.environ["PERDURE_CLAUDE"] = str(broken)
    first = one.perdure(*words(one, "first", "--attempts", "9"), "Do it.")
    assert first.code == 3, first.err
    assert len(first.json["attempts"]) == 3
    (condition,) = first.json["conditions"]
    assert "within seconds of its start 3 times in a row" in condition["message"] and "SyntaxError" in condition["message"]
    assert one.perdure(*words(one, "second", "--attempts", "2"), "Do it.").code == 1
    third = one.start(*words(one, "third"), "Do it.")
    row = waiting(one, "third", "parked: claude does not start")
    assert row["attempt"] == 0
    third.kill()
    one.finish(third)
    assert "claude does not start" in one.perdure("doctor", "--agent", "claude").out
    assert "SyntaxError" in one.perdure("why", "third").out
    assert (one.home / "launches").read_text().count("launched") == 5
