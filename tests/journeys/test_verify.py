"""The task's own check with the real CLIs: its failure is returned to the same conversation, and
the messages that reached the model prove it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.finding import first_file
from tests.journeys.stage import Stage, said
from tests.journeys.test_one_task import PROMPT, run_to

MakeStage = Callable[..., Stage]

pytestmark = pytest.mark.journey

THREE_TRIES = """by history
run echo one > one.txt
---
say I am done.
---
run echo two > two.txt
---
say Now I am.
---
run echo three > three.txt
---
say At last.
"""

TALKS = """by history
say I am done.
---
say I looked again.
"""


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_check_fails_twice_then_passes(stage: MakeStage) -> None:
    """A check fails twice and then passes: there is one conversation with three turns, and no
    attempt is used up. Each prompt has the output of the check that failed before it."""
    one = stage(THREE_TRIES)
    check = (
        "printf '\\033[31mchecking\\033[0m\\n'; for n in two three; do test -e $n.txt || { echo "
        '"Error: $n is missing"; exit 3; }; done'
    )
    done = one.perdure(*run_to(one, "--attempts", "1", "--verify", check), PROMPT)
    assert done.code == 0, done.err
    attempts = done.json["attempts"]
    assert [attempt["outcome"]["kind"] for attempt in attempts] == [
        "verify_failed",
        "verify_failed",
        "succeeded",
    ]
    assert [attempt["receipt"]["verdict"] for attempt in attempts] == ["fresh", "native", "native"]
    assert len({attempt["session_id"] for attempt in attempts}) == 1
    _, second, third = one.rehearsal.prompts()
    assert (
        "Error: two is missing" in second
        and "exit code 3 (round 1 of 3)" in second
        and "not instructions to you" in second
    )
    assert (
        "Error: three is missing" in third
        and "two is missing" not in third
        and "round 2 of 3" in third
    )
    assert "\x1b" not in second and "\nchecking\nError" in second
    assert said(one.rehearsal.last.messages).count("is missing\n---") == 2
    one.nothing_survives()


def test_a_check_that_always_fails_ends_with_its_evidence(stage: MakeStage) -> None:
    """After the given number of rounds the run has failed. `show`, `why` and the journal have the
    exit code, the output and the rounds."""
    one = stage(TALKS)
    check = "seq 100000; echo 'AssertionError: 3 != 4' >&2; seq 100000 | sed 's/$/ PASSED/'; exit 5"
    done = one.perdure(*run_to(one, "--verify", check, "--verify-rounds", "1"), PROMPT)
    assert done.code == 1, done.err
    report = done.json
    assert [attempt["outcome"]["kind"] for attempt in report["attempts"]] == [
        "verify_failed",
        "verify_failed",
    ]
    assert (
        "exit code 5: AssertionError: 3 != 4; it went back to the agent 1 time(s)"
        in report["reason"]
    )
    (first,), (last,) = (attempt["checks"] for attempt in report["attempts"])
    assert (first["code"], first["round"], last["round"], last["rounds"]) == (5, 1, 2, 1)
    assert "AssertionError: 3 != 4" in last["output"] and len(last["output"]) <= 6000
    assert Path(last["log"]).stat().st_size > 1_000_000
    why = one.perdure("why", "task").out
    assert (
        "failed with exit code 5, round 1 of 1" in why
        and "AssertionError: 3 != 4" in why
        and last["log"] in why
    )
    assert '"verify_ended"' in one.perdure("logs", "task", "--json").out
    assert len(one.rehearsal.prompts()) == 2
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_secret_in_the_output_of_a_check(stage: MakeStage) -> None:
    """The check splits a secret with an escape sequence. Removing the escape makes the secret
    complete again, but neither the agent nor the journal gets it."""
    one = stage(TALKS, extra={"SERVICE_TOKEN": "canary-of-the-check"})
    check = "printf 'Error: can\\033[0mary-of-the-check is wrong\\n'; exit 1"
    done = one.perdure(*run_to(one, "--verify", check, "--verify-rounds", "1"), PROMPT)
    assert done.code == 1, done.err
    _, second = one.rehearsal.prompts()
    assert "is wrong" in second and "canary-of-the-check" not in second
    assert (
        "canary-of-the-check"
        not in done.out + one.perdure("logs", "task", "--json").out + one.perdure("why", "task").out
    )


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_check_that_cannot_be_run_is_for_a_person(stage: MakeStage) -> None:
    """If the check's program is missing, that is not a failure of the agent: the agent gets no
    message, and a person is asked."""
    one = stage(TALKS)
    done = one.perdure(*run_to(one, "--verify", "no-such-tool --check"), PROMPT)
    assert done.code == 7, done.err
    (attempt,) = done.json["attempts"]
    assert attempt["outcome"]["kind"] == "config_error"
    assert "`no-such-tool --check` cannot be run (exit code 127)" in attempt["outcome"]["detail"]
    assert [condition["type"] for condition in done.json["conditions"]] == ["needs_person"]
    assert len(one.rehearsal.prompts()) == 1


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_what_a_check_gets_and_leaves(stage: MakeStage) -> None:
    """The check does not get the agent's credentials. Secrets in its output are redacted, it has a
    time limit, and none of its processes survives."""
    one = stage(TALKS, extra={"BILLING_TOKEN": "s3cr3t-of-billing"})
    check = "env | grep -c dummy-key; echo s3cr3t-of-billing $COLOUR; setsid sleep 96 & sleep 95"
    words = (
        "--verify-rounds",
        "0",
        "--verify-timeout",
        "1s",
        "--env",
        "COLOUR=red",
        "--verify",
        check,
    )
    done = one.perdure(*run_to(one, *words), PROMPT)
    assert done.code == 1, done.err
    (checked,) = done.json["attempts"][0]["checks"]
    assert checked["code"] == 124
    assert checked["output"] == "0\n***************** red".replace(
        "*****************", "*" * len("s3cr3t-of-billing")
    )
    assert b"s3cr3t" not in Path(checked["log"]).read_bytes()
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_stop_ends_the_check(stage: MakeStage) -> None:
    """`perdure stop` while the check runs ends the check, and its result does not count. A retry
    continues and checks again."""
    one = stage(TALKS)
    started = one.start(
        *run_to(one, "--verify", "test -e again.txt || { touch again.txt; sleep 94; }"), PROMPT
    )
    one.until(lambda: first_file(one.home, "again.txt"), "the check runs")
    assert one.perdure("stop", "task").code == 0
    stopped = one.finish(started)
    assert stopped.code == 130, stopped.err
    assert [attempt["checks"] for attempt in stopped.json["attempts"]] == [[]]
    one.nothing_survives()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == [
        "cancelled",
        "succeeded",
    ]
    assert done.json["attempts"][1]["receipt"]["verdict"] == "native"
