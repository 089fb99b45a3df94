"""Requests of Gemini CLI. Without a terminal the CLI denies a call that needs a permission. The
attempt that gets a person's answer runs the CLI over its protocol, where it asks for permissions.
Exactly the call that was shown runs, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.rules.requests import digest
from tests.journeys.stage import Stage
from tests.journeys.test_endings import call
from tests.journeys.test_requests import requests
from tests.journeys.test_requests import run as begin

MakeStage = Callable[..., Stage]
GEMINI = pytest.mark.parametrize("agent", ["gemini"], indirect=True)
SLOW = pytest.mark.parametrize(
    "agent", [pytest.param("gemini", marks=pytest.mark.slow)], indirect=True
)
"""The attempt with the answer waits until the minute of the question is over, so most of these
journeys are slow."""
pytestmark = pytest.mark.journey
STOPS = "say I cannot do that without the call. I stop here.\n"


def run(stage: Stage, *words: str) -> dict[str, Any]:
    return begin(stage, "--agent", "gemini", *words)


def write(name: str, content: str = "all:\n\techo ran\n") -> str:
    """Return a call that writes a file. It needs a permission if the file is part of a project's
    build."""
    return call("write_file", file_path=name, content=content)


def results(stage: Stage) -> list[str]:
    """Return the results of calls in the newest request to the model."""
    return [each.text for each in stage.rehearsal.last.messages if each.role == "tool_result"]


def workdir(report: dict[str, Any]) -> Path:
    return Path(report["workspace"]["path"])


@GEMINI
def test_an_approved_file_is_written_once_in_another_process(stage: MakeStage, agent: str) -> None:
    """The run waits without a process. After the approval exactly this call runs, once: the same
    call a second time, and another one in the same answer, are asked for again. The model's
    thoughts count as output in both attempts."""
    make, other = write("Makefile"), write("package.json", "{}\n")
    replies = [make, STOPS, other + make, make, STOPS]
    here = stage("---\n".join(f"{reply}usage in=100 out=7 thoughts=50\n" for reply in replies))
    report = run(here)
    here.nothing_survives()
    assert report["state"] == "queued"
    (request,) = requests(here)
    assert (request["state"], request["tool"], request["parked"]) == ("open", "write_file", False)
    shown = json.loads(request["payload"])
    assert shown == {"file_path": "Makefile", "content": "all:\n\techo ran\n"}
    assert request["sha256"] == digest("write_file", shown)
    assert not (workdir(report) / "Makefile").exists()
    assert here.perdure("work", "--once").code == 0 and len(here.show()["attempts"]) == 1

    done = here.perdure("approve", "task")
    assert done.code == 3, done.err
    here.nothing_survives()
    assert (workdir(report) / "Makefile").read_text() == shown["content"]
    assert not (workdir(report) / "package.json").exists()
    prompts = [each.text for each in here.rehearsal.last.messages if each.role == "user"]
    assert "allowed this call" in prompts[-1]
    refused, ran, again = results(here)[-3:]
    assert "Successfully created and wrote to new file" in ran
    assert refused == again == "This call needs a permission that nobody has given."
    attempts = here.show()["attempts"]
    assert attempts[-1]["receipt"]["verdict"] == "native"
    assert [each["usage"]["output"] for each in attempts] == [2 * 57, 3 * 57]
    first, second, third = requests(here)
    assert (first["answer"], first["given"]) == ("allow", 2)
    assert {second["state"], third["state"]} == {"open"}
    assert {second["sha256"], third["sha256"]} == {
        first["sha256"],
        digest("write_file", {"file_path": "package.json", "content": "{}\n"}),
    }


@SLOW
def test_a_refusal_is_told_and_the_call_does_not_run(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """perdure is killed while the agent works, and the agent asks a person without a supervisor.
    The model gets the text of the refusal. The refused call does not run when the model repeats
    it."""
    flag, setup = tmp_path / "go", write("setup.py", "import this\n")
    here = stage(f"hold {flag}\n{setup}---\n{STOPS}---\n{setup}---\nsay Then without.\n")
    words = ["--repo", str(here.repo), "--name", "task", "--agent", agent, "--attempts", "2"]
    started = here.start("run", *words, "Do the task.")
    here.attempt_directory(1)
    started.kill()
    here.finish(started)
    assert requests(here) == []
    flag.touch()

    def taken_over() -> list[dict[str, Any]]:
        here.perdure("work", "--once")
        return requests(here)

    (request,) = here.until(taken_over, "the request is stored")
    assert json.loads(request["payload"])["content"] == "import this\n"
    done = here.perdure("deny", "task", "--why", "use pyproject.toml")
    assert done.code == 0, done.err
    prompts = [each.text for each in here.rehearsal.last.messages if each.role == "user"]
    assert "refused this call (use pyproject.toml)" in prompts[-1]
    assert results(here)[-1] == "A person refused this call: use pyproject.toml"
    report = here.show()
    assert not (workdir(report) / "setup.py").exists()
    assert report["state"] == "succeeded"
    assert report["attempts"][-1]["receipt"]["verdict"] == "native"


@SLOW
def test_a_kill_during_an_approved_call_asks_again(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The approval is used up when the call begins. After everything was killed, the model repeats
    the call. It does not run a second time, and a person is asked."""
    file, flag = tmp_path / "ran", tmp_path / "go"
    command = f"rm -rf old; echo ran >> {file}; until [ -e {flag} ]; do sleep 0.1; done"
    remove = call("run_shell_command", command=command)
    here = stage("---\n".join([remove, STOPS, remove, remove, STOPS]))
    run(here)
    started = here.start("approve", "task")
    here.until(file.exists, "the approved call runs")
    here.lose_machine(started)

    def asked_again() -> bool:
        here.perdure("work", "--once")
        return len(requests(here)) == 2

    here.until(asked_again, "the call is asked for again")
    assert file.read_text() == "ran\n"
    first, second = requests(here)
    assert (first["answer"], first["sha256"]) == ("allow", second["sha256"])
    assert second["state"] == "open"


@SLOW
def test_a_person_allows_an_edit_of_a_build_file_at_the_level_full(
    stage: MakeStage, agent: str
) -> None:
    """No permissions level allows an edit of a build file, but a person can allow it."""
    edit = call(
        "replace", file_path="package.json", old_string="{}", new_string="[]", instruction="change"
    )
    here = stage(
        "---\n".join(
            [
                call("run_shell_command", command="echo {} > package.json") + edit,
                STOPS,
                edit,
                "say Ok.\n",
            ]
        )
    )
    report = run(here, "--permissions", "full")
    (request,) = requests(here)
    assert request["tool"] == "replace"
    assert here.perdure("approve", "task").code == 0
    report = here.show()
    assert (workdir(report) / "package.json").read_text() == "[]\n"
    attempt = report["attempts"][-1]
    assert attempt["receipt"]["verdict"] == "native"
    assert attempt["usage"]["output"] > 0


@GEMINI
def test_hooks_of_the_user_are_not_skipped(stage: MakeStage, agent: str) -> None:
    """Over its protocol the CLI runs no hooks for tools. If the user has such a hook, the approval
    cannot be used, and no person is asked a second time."""
    make = write("Makefile")
    here = stage("---\n".join([make, STOPS, make, STOPS]))
    settings = here.agent_home / ".gemini" / "settings.json"
    hook = {"hooks": [{"type": "command", "command": "true"}]}
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps({**known, "hooks": {"BeforeTool": [hook]}}))
    report = run(here)
    assert [each["state"] for each in requests(here)] == ["open"]
    assert here.perdure("approve", "task").code == 3
    assert not (workdir(report) / "Makefile").exists()
    assert [each["state"] for each in requests(here)] == ["answered"]


@SLOW
def test_a_dangerous_command_runs_once_after_the_approval(stage: MakeStage, agent: str) -> None:
    """At the level `edit` the CLI would ask about `rm -rf`. The approval allows only this
    command."""
    remove, other = (call("run_shell_command", command=f"rm -rf {each}") for each in ("a", "b"))
    here = stage("---\n".join([remove, STOPS, other, remove, "say Ok.\n"]))
    report = run(here)
    (request,) = requests(here)
    assert (request["tool"], request["summary"]) == ("run_shell_command", "rm -rf a")
    for each in ("a", "b"):
        (workdir(report) / each).mkdir()
    assert here.perdure("approve", "task").code == 3
    assert not (workdir(report) / "a").exists() and (workdir(report) / "b").exists()
    assert [each["summary"] for each in requests(here)] == ["rm -rf a", "rm -rf b"]


@SLOW
def test_a_call_that_was_refused_stays_in_the_conversation(stage: MakeStage, agent: str) -> None:
    """A person answers two requests, one after the other. The model gets each call with its result,
    also the one that was refused over the protocol, because the service would not accept a result
    without its call."""
    make, other = write("Makefile"), write("package.json", "{}\n")
    here = stage("---\n".join([make, STOPS, other + make, STOPS, other, "say Ok.\n"]))
    run(here)
    assert here.perdure("approve", "task").code == 3
    done = here.perdure("approve", "task", "--request", "2")
    assert done.code == 0, done.err
    report = here.show()
    assert (workdir(report) / "package.json").exists()
    assert [each["receipt"]["verdict"] for each in report["attempts"][1:]] == ["native"] * 2
    calls = [each.call for each in here.rehearsal.last.messages if each.role == "tool_call"]
    for each in here.rehearsal.last.messages:
        assert each.role != "tool_result" or each.call in calls
    assert len(calls) == 4


@SLOW
def test_gemini_over_acp_writes_an_approved_file_once(stage: MakeStage, agent: str) -> None:
    """With `acp-gemini` a person sees the change of the file before the approval. The refused call
    stays in the conversation with its result."""
    make = write("Makefile")
    here = stage("---\n".join([make, STOPS, write("Makefile", "other:\n"), make, make, STOPS]))
    report = begin(here, "--agent", "acp-gemini")
    (request,) = requests(here)
    assert json.loads(request["payload"])["changes"][0]["newText"] == "all:\n\techo ran\n"
    assert here.perdure("approve", "task").code == 3
    assert (workdir(report) / "Makefile").read_text() == "all:\n\techo ran\n"
    assert here.show()["attempts"][-1]["receipt"]["verdict"] == "native"
    calls = [each.call for each in here.rehearsal.last.messages if each.role == "tool_call"]
    assert len(calls) == 4
    assert "needs a permission that nobody has given" in results(here)[0]
    assert [each["state"] for each in requests(here)] == ["answered", "open", "open"]
