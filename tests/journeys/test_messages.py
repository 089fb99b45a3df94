"""Messages that a person sends to a running agent with `tell`, with the real agents. They go into
the running turn if the CLI accepts them there, else into the next prompt of the same conversation.
The model server's record shows that each arrives exactly once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.agents.rehearsal.server import Request
from perdure.model.events import AgentLaunched
from tests.journeys.stage import Stage
from tests.journeys.test_endings import acp_command
from tests.journeys.test_requests import requests
from tests.journeys.test_requests_told import STOPS, command, escalated, outside

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey
CLAUDE = pytest.mark.parametrize("agent", ["claude"], indirect=True)
BOTH = pytest.mark.parametrize("agent", ["claude", "codex"], indirect=True)
CODEX = pytest.mark.parametrize("agent", ["codex"], indirect=True)
KEPT = {"PERDURE_WARM": "on"}
"""Makes perdure run Codex by its app server, which accepts messages in the running turn."""
INTO_TURN = pytest.mark.parametrize(
    ("agent", "extra"), [("claude", {}), ("codex", KEPT)], indirect=["agent"]
)

WAITS = "run until test -e go; do sleep 0.05; done; echo one > one.txt\n"
LATER = "run until test -e later; do sleep 0.05; done; echo two > two.txt\n"
ONE_TOOL = f"by history\n{WAITS}---\nsay It is done.\n---\nsay It is done as you said.\n"
TWO_TOOLS = f"by history\n{WAITS}---\n{LATER}---\nsay It is done.\n---\nsay As you said.\n"


def begun(stage: Stage) -> subprocess.Popen[str]:
    """Start a run in the background and wait until its agent is in its first tool."""
    words = ("--agent", stage.agent, "--permissions", "full", "--name", "task")
    started = stage.start("run", "--repo", str(stage.repo), *words, "Write the files.")
    stage.rehearsal.wait_for(1)
    in_tool(stage, 1)
    return started


def in_tool(stage: Stage, count: int) -> None:
    stdout = stage.attempt_directory(1) / "stdout"
    stage.until(
        lambda: any(
            stdout.read_bytes().count(mark) >= count
            for mark in (b'"type":"tool_use","id"', b'"item.started"')
        ),
        f"the agent is in tool {count}",
    )


def workdir(stage: Stage) -> Path:
    return Path(stage.show()["workspace"]["path"])


def tell(stage: Stage, text: str, *words: str) -> str:
    done = stage.perdure("tell", "task", text, *words)
    assert done.code == 0, done.err
    assert done.out == ""
    return done.err


def shown_to_model(request: Request, text: str) -> int:
    """Return how often a request has the text."""
    texts = [*(message.text for message in request.messages), *request.added]
    return sum(each.count(text) for each in texts)


def kinds(stage: Stage) -> list[tuple[int, str, Any]]:
    """Return attempt, kind and version of each record about messages."""
    lines = stage.perdure("logs", "task", "--json").out.splitlines()
    records = [json.loads(line) for line in lines]
    return [
        (each["attempt"], each["event"]["kind"], each["event"]["version"])
        for each in records
        if each["event"]["kind"].startswith("message_") or each["event"].get("message") is True
    ]


@INTO_TURN
def test_a_message_reaches_the_model_within_the_running_turn(
    stage: MakeStage, agent: str, extra: dict[str, str]
) -> None:
    """A message is sent while a tool runs. In the same attempt the model gets it once, with the
    result of that tool. The journal and every report say when it was told, delivered and
    received."""
    here = stage(TWO_TOOLS, extra=extra)
    started = begun(here)
    words = tell(here, "Use tabs\x1b[31m, not spaces.", "--key", "k1")
    assert "message 2 goes into the running turn" in words
    assert "accepted before" in tell(here, "Use tabs\x1b[31m, not spaces.", "--key", "k1")
    if agent == "codex":
        here.until(lambda: here.show()["messages"][0]["delivered"], "Codex has accepted it")
    (here.state and workdir(here) / "go").touch()
    here.rehearsal.wait_for(2)
    here.until(lambda: here.show()["messages"][0]["received"], "the message is received")
    assert shown_to_model(here.rehearsal.requests[1], "Use tabs\x1b[31m, not spaces.") == 1
    (workdir(here) / "later").touch()
    done = here.finish(started)
    assert done.code == 0, done.err

    report = here.show()
    (attempt,) = report["attempts"]
    assert attempt["receipt"]["verdict"] == "native" or attempt["continuation"] == "fresh"
    assert (report["context_version"], attempt["context_version"]) == (2, 2)
    assert shown_to_model(here.rehearsal.last, "Use tabs") == 1
    assert kinds(here) == [
        (0, "context_added", 2),
        (1, "message_delivered", 2),
        (1, "message_received", 2),
    ]
    (message,) = report["messages"]
    assert (message["how"], message["attempt"], message["version"]) == ("turn", 1, 2)
    assert message["told"] <= message["delivered"] <= message["received"]
    assert here.perdure("why", "task", "--json").json["messages"] == report["messages"]
    for verb in ("show", "why"):
        shown = here.perdure(verb, "task").out
        assert "given to the running turn (attempt 1); the model has it" in shown
        assert "\x1b" not in shown
    assert "message 2 is in the conversation" in here.perdure("logs", "task").out
    here.nothing_survives()


@CLAUDE
def test_a_message_before_the_end_of_a_turn_goes_on_with_it(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """A message is sent while the model gives its last answer. The agent does not end its turn, but
    continues with the message in the same process."""
    told = tmp_path / "told"
    here = stage(f"by history\nhold {told}\nsay It is done.\n---\nsay As you said.\n")
    words = ("--agent", here.agent, "--name", "task")
    started = here.start("run", "--repo", str(here.repo), *words, "Write the files.")
    here.rehearsal.wait_for(1)
    here.attempt_directory(1)
    tell(here, "Also write a test.")
    told.touch()
    assert here.finish(started).code == 0
    report = here.show()
    assert len(report["attempts"]) == 1
    assert [each["how"] for each in report["messages"]] == ["boundary"]
    assert shown_to_model(here.rehearsal.last, "Also write a test.") == 1
    assert len(here.rehearsal.requests) == 2


@CODEX
def test_a_message_is_in_the_next_prompt_if_no_turn_takes_it(stage: MakeStage, agent: str) -> None:
    """`codex exec` accepts no message in its turn. perdure continues the conversation with the
    message as soon as the turn has ended."""
    here = stage(ONE_TOOL)
    started = begun(here)
    assert "as soon as its turn ends" in tell(here, "Use tabs.")
    (workdir(here) / "go").touch()
    done = here.finish(started)
    assert done.code == 0, done.err
    report = here.show()
    assert [each["continuation"] for each in report["attempts"]] == ["fresh", "resume"]
    assert report["attempts"][1]["receipt"]["verdict"] == "native"
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    assert kinds(here) == [
        (0, "context_added", 2),
        (2, "message_delivered", 2),
        (2, "message_received", 2),
    ]


@CODEX
def test_a_message_over_acp_is_in_the_next_prompt(stage: MakeStage, agent: str) -> None:
    """The protocol has no call for a message into the running turn. The message is in the prompt of
    the next turn of the same conversation, once."""
    script = ONE_TOOL.replace("run until", "run touch begun; until")
    here = stage(script, extra={"PERDURE_ACP_CODEX": acp_command()})
    words = ("--agent", "acp-codex", "--permissions", "full", "--name", "task")
    started = here.start("run", "--repo", str(here.repo), *words, "Write the files.")
    here.attempt_directory(1)
    here.until(lambda: (workdir(here) / "begun").exists(), "the agent is in its tool")
    assert "as soon as its turn ends" in tell(here, "Use tabs.")
    (workdir(here) / "go").touch()
    done = here.finish(started)
    assert done.code == 0, done.err
    report = here.show()
    assert [each["continuation"] for each in report["attempts"]] == ["fresh", "resume"]
    assert report["attempts"][1]["receipt"]["verdict"] == "native"
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    assert kinds(here) == [
        (0, "context_added", 2),
        (2, "message_delivered", 2),
        (2, "message_received", 2),
    ]


@BOTH
def test_two_messages_arrive_in_order_and_once(stage: MakeStage, agent: str) -> None:
    """Two messages that are sent one after the other during a tool call arrive in this order, once
    each."""
    here = stage(ONE_TOOL)
    started = begun(here)
    tell(here, "First this: one.")
    with perdure.open(cwd=here.repo, environ=here.environ) as runner:
        assert runner.tell("task", "Then this: two.").state == "running"
    (workdir(here) / "go").touch()
    assert here.finish(started).code == 0
    last = here.rehearsal.last
    whole = "\n".join([*(each.text for each in last.messages), *last.added])
    assert (whole.count("First this"), whole.count("Then this")) == (1, 1)
    assert whole.index("First this") < whole.index("Then this")
    assert [each["received"] > 0 for each in here.show()["messages"]] == [True, True]


@BOTH
def test_a_message_survives_the_death_of_everything(stage: MakeStage, agent: str) -> None:
    """Agent, shim and perdure are killed directly after `tell` returned. The prompt of the next
    attempt has the message, once."""
    here = stage(ONE_TOOL)
    started = begun(here)
    place = workdir(here)
    tell(here, "Use tabs.")
    here.lose_machine(started)
    (place / "go").touch()
    done = here.perdure("retry", "task")
    assert done.code == 0, done.err
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    (message,) = here.show()["messages"]
    assert (message["how"], message["attempt"]) == ("prompt", 2)
    assert message["received"]
    here.nothing_survives()


@INTO_TURN
def test_a_message_that_the_turn_has_is_not_told_again(
    stage: MakeStage, agent: str, extra: dict[str, str]
) -> None:
    """Everything is killed after the model got the message. The continued conversation has it, and
    the next prompt does not repeat it."""
    here = stage(TWO_TOOLS, extra=extra)
    started = begun(here)
    place = workdir(here)
    tell(here, "Use tabs.")
    if agent == "codex":
        here.until(lambda: here.show()["messages"][0]["delivered"], "Codex has accepted it")
    (place / "go").touch()
    here.rehearsal.wait_for(2)
    in_tool(here, 2)
    # Claude Code writes the message into its transcript only after its request.
    here.until(lambda: here.show()["messages"][0]["received"], "the message is received")
    here.lose_machine(started)
    (place / "later").touch()
    done = here.perdure("retry", "task")
    assert done.code == 0, done.err
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    report = here.show()
    assert report["attempts"][-1]["receipt"]["verdict"] == "native"
    assert [each["attempt"] for each in report["messages"]] == [1]
    assert report["messages"][0]["received"]


@CODEX
def test_a_message_that_codex_accepted_survives_the_death_of_everything(
    stage: MakeStage, agent: str
) -> None:
    """Codex keeps an accepted message in its memory until the tool has ended. If everything is
    killed before that, the next prompt has the message, once."""
    here = stage(ONE_TOOL, extra=KEPT)
    started = begun(here)
    place = workdir(here)
    tell(here, "Use tabs.")
    here.until(lambda: here.show()["messages"][0]["delivered"], "Codex has accepted it")
    here.lose_machine(started)
    (place / "go").touch()
    done = here.perdure("retry", "task")
    assert done.code == 0, done.err
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    (message,) = here.show()["messages"]
    assert (message["how"], message["attempt"], message["received"] > 0) == ("prompt", 2, True)
    assert here.show()["attempts"][-1]["receipt"]["verdict"] == "native"
    here.nothing_survives()


@CODEX
def test_codex_has_a_message_although_perdure_is_dead(stage: MakeStage, agent: str) -> None:
    """perdure is killed and a message is stored. The agent's turn accepts it without perdure, and
    the next perdure reads in the conversation that the model got it."""
    here = stage(TWO_TOOLS, extra=KEPT)
    started = begun(here)
    place = workdir(here)
    started.kill()
    here.finish(started)
    tell(here, "Use tabs.")
    here.until((here.attempt_directory(1) / "messages/taken-2").exists, "Codex has accepted it")
    (place / "go").touch()
    here.rehearsal.wait_for(2)
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    (place / "later").touch()
    done = here.perdure("retry", "task")
    assert done.code == 0, done.err
    report = here.show()
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    assert [each["how"] for each in report["messages"]] == ["turn"]
    assert report["messages"][0]["received"] and len(report["attempts"]) == 1


@CODEX
def test_a_kept_codex_takes_a_message_into_each_turn(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """Each of two tasks of one process gets a message in its own turn while the model answers. A
    message does not count as a prompt of another program, so the process is kept and the receipt is
    native."""
    script = [f"hold {tmp_path / name}\nsay Task {name} is done.\n" for name in ("one", "two")]
    here = stage("by history\n" + "---\n".join(script), extra=KEPT)

    def both() -> list[int]:
        with perdure.open(cwd=here.repo, environ=here.environ) as runner:
            for name in ("one", "two"):
                fields = {"scope": "plan:p/main", "branch": "perdure/p-main"}
                runner.run(f"Do {name}.", name=name, agent=agent, permissions="full", **fields)
            records = [record.event for name in ("one", "two") for record in runner.history(name)]
        return [event.turn for event in records if isinstance(event, AgentLaunched)]

    with ThreadPoolExecutor() as pool:
        turns = pool.submit(both)
        for number, name in enumerate(("one", "two")):
            here.rehearsal.wait_for(2 * number + 1)
            done = here.perdure("tell", name, f"Say {name}.")
            assert "goes into the running turn" in done.err
            here.until(
                lambda name=name: here.show(name)["messages"][0]["received"], "the model has it"
            )
            (tmp_path / name).touch()
        assert turns.result() == [1, 2]
    for name in ("one", "two"):
        report = here.show(name)
        assert shown_to_model(here.rehearsal.last, f"Say {name}.") == 1
        assert (report["state"], len(report["attempts"])) == ("succeeded", 1)
        assert [each["how"] for each in report["messages"]] == ["turn"]
    assert report["attempts"][0]["receipt"]["verdict"] == "native"
    here.nothing_survives()


@CODEX
def test_an_attempt_with_answers_takes_a_message_into_its_turn(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """An attempt that gets a person's answer runs by the app server, although no agent is kept. A
    call that was refused before the message came still becomes a request."""
    file, other = outside(tmp_path), outside(tmp_path, ".other")
    here = stage("---\n".join([command(file), STOPS, escalated(other), WAITS, STOPS]))
    words = ("run", "--repo", str(here.repo), "--agent", agent, "--name", "task", "Do it.")
    assert here.perdure(*words).code == 3
    started = here.start("approve", "task")
    here.rehearsal.wait_for(4)
    assert "goes into the running turn" in tell(here, "Use tabs.")
    here.until(lambda: here.show()["messages"][0]["delivered"], "Codex has accepted it")
    (workdir(here) / "go").touch()
    assert here.finish(started).code == 3
    assert shown_to_model(here.rehearsal.last, "Use tabs.") == 1
    report = here.show()
    assert (len(report["attempts"]), report["messages"][0]["how"]) == (2, "turn")
    asked = [each for each in requests(here) if each["state"] == "open"]
    assert [str(other) in each["payload"] for each in asked] == [True]


@CLAUDE
def test_only_a_running_agent_is_told_something(stage: MakeStage, agent: str) -> None:
    """A message for a run without a running agent is refused with one sentence and the next
    command, and nothing is stored."""
    here = stage("say It is done.\n")
    assert here.perdure("tell", "task", "x").code == 5
    run = here.perdure("run", "--repo", str(here.repo), "--name", "task", "Do it.")
    assert run.code == 0, run.err
    ended = here.perdure("tell", "task", "More.")
    assert ended.code == 6
    assert ended.err.splitlines() == [
        "perdure: task is not running (succeeded), so nothing can be told to its agent",
        '  perdure update task "..."',
    ]
    for text, sentence in (
        (" \n", "the message is empty"),
        ("x" * (1 << 20), "the message is longer than 64 KiB"),
        ("a\0b", "NUL"),
    ):
        refused = here.perdure("tell", "task", prompt=text)
        assert refused.code == 2
        assert sentence in refused.err
    assert here.show()["context_version"] == 1
