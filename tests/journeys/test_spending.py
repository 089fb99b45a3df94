"""The cost of attempts that do not reach their end, and budgets that hold nevertheless, with the
real agents and by the model server's own record."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.budget_kills import CLOSE, LONG_S, spent, table, trial
from tests.journeys.stage import Stage
from tests.journeys.test_endings import call

pytestmark = pytest.mark.journey

MakeStage = Callable[..., Stage]
MODELS = {"claude": "claude-opus-4-8", "codex": "gpt-5.5", "gemini": "", "opencode": ""}
WORK = """by history
usage in=60000 out=2000 cached=1000
say I look around.
run echo one > one.txt; head -c 32000 /dev/zero | tr '\\0' x
---
usage in=70000 out=3000 cached=2000
say I wait.
run until test -e go; do sleep 0.1; done
---
usage in=80000 out=1000 cached=3000
say It is done.
"""
IN_FLIGHT = """by history
usage in=60000 out=3000 cached=1000
say I look around.
run head -c 8000 /dev/zero | tr '\\0' x
---
usage in=65000 out=3000 cached=1000
say I look further.
run echo two >> two.txt
---
usage in=69000 out=3000 cached=1000
say I look once more.
run echo three >> three.txt
---
usage in=73000 out=1000 cached=3000
say It is done.
"""
DEARER = """by history
usage in=60000 out=3000
say I look around.
run head -c 8000 /dev/zero | tr '\\0' x
---
usage in=65000 out=1000 cached=60000
say I look further.
run echo two >> two.txt
---
usage in=69000 out=3000
say I look once more.
hold {go}
run until test -e {go}-on; do sleep 0.1; done
---
usage in=73000 out=1000 cached=3000
say It is done.
"""
COUNTS = ("input", "output", "cached")


def words(one: Stage, *more: str) -> tuple[str, ...]:
    model = ("--model", MODELS[one.agent]) if MODELS[one.agent] else ()
    return (
        "run",
        "--json",
        "--name",
        "task",
        "--agent",
        one.agent,
        "--permissions",
        "full",
        *model,
        *more,
        "Do it.",
    )


def stop_waiting(one: Stage) -> None:
    """Let the command end for which the agent waits, also when the command is called again."""
    place = one.show()["workspace"]["path"]
    Path(place, "go").touch()


def waits_in_its_tool(one: Stage, number: int = 1, output: int = 5000) -> dict[str, Any]:
    """Return the run when its agent waits in the second tool call and the usage of the earlier
    replies is known."""

    one.attempt_directory(number)

    def known() -> dict[str, Any] | None:
        report = one.show()
        used = (
            report["attempts"][number - 1]["usage"] if len(report["attempts"]) >= number else None
        )
        # OpenCode reports the usage of a step when the step's tools have ended.
        late = one.agent == "opencode"
        told = used is not None and used["output"] >= (2000 if late else output)
        return report if told and (not late or len(one.rehearsal.reported) >= 2) else None

    found: dict[str, Any] = one.until(known, "both replies are counted while the agent works")
    return found


def test_what_a_live_attempt_has_used_is_shown(stage: MakeStage) -> None:
    """While the agent works, the run shows its usage, marked as an estimate. At the end the final
    figure replaces it."""
    one = stage(WORK)
    started = one.start(*words(one))
    live = waits_in_its_tool(one)
    assert live["state"] == "running" and live["usage"]["estimated"] is True
    assert "≈" in one.perdure("show", "task").out
    stop_waiting(one)
    done = one.finish(started)
    assert done.code == 0, done.err
    assert done.json["usage"]["estimated"] is (one.agent == "codex")  # Codex reports no dollars.
    assert {name: done.json["usage"][name] for name in COUNTS} == spent(one.rehearsal).counts


@pytest.mark.parametrize("victim", ["agent", "everything", "a person"])
def test_a_killed_attempt_has_used_what_its_model_reported(stage: MakeStage, victim: str) -> None:
    """The agent is killed alone or with perdure, or a person stops it. The usage of the killed
    attempt and of the next one equals what the model server reported, and no reply is counted
    twice."""
    one = stage(WORK)
    started = one.start(*words(one, "--attempts", "1"))
    waits_in_its_tool(one)
    if victim == "agent":
        os.kill(one.agent_pid(), signal.SIGKILL)
    elif victim == "everything":
        one.lose_machine(started)
    else:
        started.send_signal(signal.SIGINT)
    one.finish(started)
    reported = spent(one.rehearsal)
    stop_waiting(one)
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    first, second = (attempt["usage"] for attempt in done.json["attempts"])
    assert first["estimated"] is True
    if one.agent == "opencode":
        # The usage of the second step was not reported, so it is estimated from the earlier
        # messages.
        least = reported.counts["input"]
        assert least == 130_000 and least <= first["input"] <= 1.05 * least
        return
    assert {name: first[name] for name in COUNTS} == reported.counts
    assert {name: first[name] + second[name] for name in COUNTS} == spent(one.rehearsal).counts
    if MODELS[one.agent]:
        assert done.json["usage"]["cost_usd"] == pytest.approx(spent(one.rehearsal).usd, rel=0.01)


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_a_budget_holds_over_killed_attempts(stage: MakeStage, agent: str) -> None:
    """The next attempt gets the rest of the budget. The run ends when the budget is spent, although
    no attempt reached its end."""
    one = stage(WORK)
    started = one.start(*words(one, "--attempts", "9", "--budget-usd", "1.5"))
    for number in (1, 2):
        waits_in_its_tool(one, number, 5000 if number == 1 else 3000)
        os.kill(one.agent_pid(number), signal.SIGKILL)
    done = one.finish(started)
    assert done.code == 3, done.err
    assert "budget" in done.json["conditions"][0]["message"]
    assert done.json["usage"]["cost_usd"] == pytest.approx(spent(one.rehearsal).usd, rel=0.05)
    assert 1.5 <= spent(one.rehearsal).usd <= 1.5 + spent(one.rehearsal).dearest


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_a_budget_holds_over_replies_that_were_cut_off(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The agent is killed twice during a reply of which it had recorded nothing, or only the
    beginning. The cost of both replies is estimated, and the third attempt is not launched."""
    go = tmp_path / "go"
    cut_off = f"say I look further.\nhold {go}\n"
    one = stage(IN_FLIGHT.replace("say I look further.\n", cut_off))
    started = one.start(*words(one, "--attempts", "9", "--budget-usd", "1.1"))
    for number in (1, 2):
        asked = one.rehearsal.wait_for(1 + number)
        # The server counts a reply only from its first byte, so the kill must come after that.
        one.until(lambda asked=asked: asked.number in one.rehearsal.begun, "the reply begins")
        os.kill(one.agent_pid(number), signal.SIGKILL)
    go.touch()
    done = one.finish(started)
    assert done.code == 3, done.err
    assert "budget" in done.json["conditions"][0]["message"]
    assert len(done.json["attempts"]) == 2 and len(one.rehearsal.requests) == 3
    used, by_server = done.json["usage"], spent(one.rehearsal, in_full=True)
    assert used["estimated"] is True
    assert used["cost_usd"] == pytest.approx(by_server.usd, rel=0.05)
    assert by_server.usd <= 1.1 + by_server.dearest


@pytest.mark.parametrize("agent", ["codex"])
def test_a_budget_holds_although_replies_that_were_cut_off_cost_more_than_estimated(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The model's cache expired, so the two interrupted replies cost three times as much as
    estimated. A reserve is kept for such replies. The third attempt is not launched, although by
    the estimates a fifth of the budget is left. The run says so, and a person can spend that
    rest."""
    go = tmp_path / "go"
    one = stage(DEARER.format(go=go))
    started = one.start(*words(one, "--attempts", "9", "--budget-usd", "1.0"))
    for number, requests in ((1, 3), (2, 4)):
        asked = one.rehearsal.wait_for(requests)
        one.until(lambda asked=asked: asked.number in one.rehearsal.begun, "the reply begins")
        os.kill(one.agent_pid(number), signal.SIGKILL)
    go.touch()
    done = one.finish(started)
    assert done.code == 3, done.err
    assert len(done.json["attempts"]) == 2 and len(one.rehearsal.requests) == 4
    message = done.json["conditions"][0]["message"]
    assert message.startswith("the budget may be spent: $0.7") and "2 replies that were" in message
    by_server = spent(one.rehearsal, in_full=True)
    assert 1.0 < by_server.usd <= 1.0 + by_server.dearest
    assert done.json["usage"]["cost_usd"] < 0.8
    again = one.perdure("retry", "task", "--json")
    assert again.code == 3 and len(one.rehearsal.requests) == 5, again.err
    assert again.json["attempts"][-1]["outcome"]["kind"] == "budget_spent"
    assert "the budget is spent" in again.json["conditions"][0]["message"]


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_a_budget_ends_an_agent_that_works_on(stage: MakeStage, agent: str) -> None:
    """If an agent continues after the reply that spent the budget, it is ended before it gets
    another reply."""
    one = stage(WORK)
    done = one.perdure(*words(one, "--budget-usd", "0.5"))
    assert done.code == 3, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == ["budget_spent"]
    assert len(one.rehearsal.requests) == 2
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["codex"])
def test_instructions_do_not_exceed_a_spent_budget(stage: MakeStage, agent: str) -> None:
    """New instructions arrive while the attempt spends the budget. No other attempt is launched for
    them: a person is needed, and the next retry gives them to the agent."""
    first = "run until test -e first; do sleep 0.1; done"
    one = stage(WORK.replace("run echo one > one.txt", first))
    started = one.start(*words(one, "--budget-usd", "0.5"))
    one.rehearsal.wait_for(1)
    one.until(lambda: one.show()["usage"]["output"] >= 2000, "the first reply is counted")
    assert one.perdure("update", "task", "Use tabs.", "--detach").code == 0
    Path(one.show()["workspace"]["path"], "first").touch()
    done = one.finish(started)
    assert done.code == 3, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == ["budget_spent"]
    assert "the budget is spent" in done.json["conditions"][0]["message"]
    assert len(one.rehearsal.requests) == 2


@pytest.mark.parametrize("agent", ["codex"])
def test_a_retry_finds_that_the_budget_was_spent_meanwhile(stage: MakeStage, agent: str) -> None:
    """perdure and the shim were killed, so the agent spent the budget without a supervisor. The
    first retry closes that attempt and launches nothing. A second retry, after the person has seen
    that, launches an attempt."""
    one = stage(
        WORK.replace("run echo one > one.txt", "run until test -e first; do sleep 0.1; done")
    )
    started = one.start(*words(one, "--attempts", "1", "--budget-usd", "0.5"))
    one.rehearsal.wait_for(1)
    one.until(lambda: one.show()["usage"]["output"] >= 2000, "the first reply is counted")
    first = Path(one.show()["workspace"]["path"], "first")
    shim = one.shim_pid()
    started.send_signal(signal.SIGSTOP)
    os.kill(shim, signal.SIGKILL)
    started.kill()
    first.touch()
    one.finish(started)
    one.rehearsal.wait_for(2)
    (transcript,) = one.transcripts()
    one.until(
        lambda: transcript.read_text().count("token_usage_record") == 2, "the second reply has come"
    )
    one.lose_machine(started)
    closed = one.perdure("retry", "task", "--json")
    assert closed.code == 3 and "budget" in closed.json["conditions"][0]["message"], closed.err
    assert len(closed.json["attempts"]) == 1 and len(one.rehearsal.requests) == 2
    stop_waiting(one)
    assert one.perdure("retry", "task", "--json").code in (0, 3)
    assert len(one.rehearsal.requests) > 2


@pytest.mark.parametrize("agent", ["codex"])
def test_an_agent_with_a_budget_is_ended_when_nobody_follows_it(
    stage: MakeStage, agent: str
) -> None:
    """When perdure is killed, a CLI without a budget of its own is ended, so that it does not spend
    more. The next attempt continues in the same conversation."""
    one = stage(
        WORK.replace("run echo one > one.txt", "run until test -e first; do sleep 0.1; done")
    )
    started = one.start(*words(one, "--attempts", "1", "--budget-usd", "1.5"))
    one.rehearsal.wait_for(1)
    one.until(lambda: one.show()["usage"]["output"] >= 2000, "the first reply is counted")
    assert one.show()["liveness"] == "attended"
    started.kill()
    one.finish(started)
    one.until(lambda: one.show()["liveness"] == "interrupted", "the shim has ended the agent")
    one.nothing_survives()
    assert len(one.rehearsal.requests) == 1
    Path(one.show()["workspace"]["path"], "first").touch()
    stop_waiting(one)
    done = one.perdure("retry", "task", "--json", "--budget-usd", "9")
    first, second = done.json["attempts"]
    assert (
        first["outcome"]["kind"] == "lost" and "supervisor was gone" in first["outcome"]["detail"]
    )
    assert second["receipt"]["verdict"] == "native", second


BEGINS_A_SUBAGENT = {
    "codex": call("multi_agent_v1.spawn_agent", message="Count it.", fork_context=True),
    "opencode": call("task", description="x", prompt="Count it.", subagent_type="general"),
}


@pytest.mark.parametrize("agent", ["codex", "opencode"], indirect=True)
def test_subagents_count(stage: MakeStage, agent: str) -> None:
    """The replies to a subagent belong to the attempt that began it, and to no later attempt. The
    agent's own figures leave them out."""
    again = "match Do more\nsay More.\nusage in=4000 out=40\n===\n"
    subagent = "match Count it\nsay Two.\nusage in=30000 out=300\n===\n"
    main = (
        f"match Do the task\n{BEGINS_A_SUBAGENT[agent]}usage in=1000 out=10\n---\nrun sleep 2\n"
        "usage in=1500 out=15\n---\nsay Done.\nusage in=2000 out=20\n"
    )
    # The fork's requests have the parent's prompt too, so the scripts' order decides.
    one = stage(again + subagent + main)
    words = ("--agent", agent, "--name", "task", "--permissions", "full", "--json")
    done = one.perdure("run", *words, "Do the task.")
    assert done.code == 0, done.err
    more = one.perdure("update", "task", "--json", "Do more.")
    assert more.code == 0, more.err
    counted = [attempt["usage"] for attempt in more.json["attempts"]]
    assert [(used["input"], used["output"]) for used in counted] == [(34_500, 345), (4000, 40)]


@pytest.mark.parametrize("agent", ["claude", "codex"])
@pytest.mark.parametrize("seed", range(2))
def test_a_budget_holds_under_random_kills(agent: str, seed: int) -> None:
    """After any kill at any time, no run spends more than its budget and one reply. Its figure
    equals the server's, plus at most one reply for each kill: a request counts because it may have
    been sent before the kill. The output of an interrupted reply is estimated, so up to half of
    that reply may be missing."""
    result = trial(3_000 + seed, agent, LONG_S)
    assert result.held and not result.wrong, table([result])
    least, most = result.by_server * (1 - CLOSE), result.by_server * (1 + CLOSE)
    least -= result.cut * result.dearest / 2
    assert least <= result.by_perdure <= most + len(result.kills) * result.dearest, table([result])
