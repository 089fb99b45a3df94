"""Requests of agents whose CLI cannot let a call wait. The turn ends, and the answer is in the next
prompt of the same conversation. Exactly the call that was shown runs, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from perdure.rules.requests import digest
from tests.journeys.stage import Stage, said
from tests.journeys.test_endings import ASK_CODEX, acp_command, call
from tests.journeys.test_requests import requests
from tests.journeys.test_requests import run as begin

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey
_OUTSIDE = Path("/var/tmp", f"perdure-test-{uuid4().hex}")
"""Prefix of files in a directory in which every user may write, but not a tool in Codex's sandbox:
that may write only in the workdir, /tmp and TMPDIR. Several processes run tests at once, and names
of `tmp_path` repeat in them."""
STOPS = "say I cannot do that without the call. I stop here.\n"


def outside(tmp_path: Path, suffix: str = "") -> Path:
    """Return the path of this test's file outside of what the sandbox allows."""
    return Path(f"{_OUTSIDE}-{tmp_path.name}{suffix}")


def run(stage: Stage) -> dict[str, Any]:
    return begin(stage, "--agent", stage.agent)


def command(file: Path, **more: Any) -> str:
    return call("exec_command", cmd=f"echo ran >> {file}", **more)


def escalated(file: Path) -> str:
    """Return a call that asks to run without the sandbox, in the form that the model uses."""
    return command(file, sandbox_permissions="require_escalated", justification="allowed")


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_codex_runs_an_approved_command_once_in_another_process(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """A person is asked about the call that the sandbox stopped, while no process runs. After the
    approval the model repeats the call in the same conversation, and it runs outside of the
    sandbox. In that turn another call, and the same call a second time, are refused, and a person
    is asked about both."""
    file, other = outside(tmp_path), outside(tmp_path, ".other")
    steps = [command(file), STOPS, escalated(other), escalated(file), escalated(file), STOPS]
    here = stage("---\n".join(steps))
    try:
        report = run(here)
        here.nothing_survives()
        assert report["state"] == "queued"
        (request,) = requests(here)
        assert (request["state"], request["tool"]) == ("open", "exec_command")
        assert request["parked"] is False
        shown = json.loads(request["payload"])
        assert shown["cmd"] == f"echo ran >> {file}"
        assert shown["sandbox_permissions"] == "require_escalated"
        assert shown["workdir"] == report["workspace"]["path"]
        assert request["sha256"] == digest("exec_command", shown)
        assert here.perdure("work", "--once").code == 0 and len(here.show()["attempts"]) == 1

        done = here.perdure("approve", "task")
        assert done.code == 3, done.err
        assert file.read_text() == "ran\n" and not other.exists()
        prompts = [each.text for each in here.rehearsal.last.messages if each.role == "user"]
        assert "allowed this call" in prompts[-1] and f"echo ran >> {file}" in prompts[-1]
        report = here.show()
        assert report["attempts"][-1]["receipt"]["verdict"] == "native"
        first, second, third = requests(here)
        assert (first["answer"], first["given"]) == ("allow", 2)
        assert {second["state"], third["state"]} == {"open"}
        assert third["sha256"] == first["sha256"] != second["sha256"]
    finally:
        for each in (file, other):
            each.unlink(missing_ok=True)


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_codex_is_told_a_refusal_and_an_answer(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """A refused call does not run, even if the model repeats it, and the model gets the text of the
    refusal. A question is answered in the next prompt."""
    file = outside(tmp_path)
    steps = [escalated(file), STOPS, escalated(file), "say Then without.\n"]
    here = stage("---\n".join([ASK_CODEX, STOPS, *steps]))
    run(here)
    assert requests(here)[0]["kind"] == "question"
    assert here.perdure("answer", "task", "SQLite").code == 3
    assert "Which database?" in said(here.rehearsal.last.messages)
    assert "SQLite" in here.rehearsal.last.messages[-1].text or "SQLite" in said(
        here.rehearsal.last.messages
    )
    done = here.perdure("deny", "task", "--why", "use the workdir")
    assert done.code == 0, done.err
    assert not file.exists()
    assert "use the workdir" in said(here.rehearsal.last.messages)
    report = here.show()
    assert report["state"] == "succeeded"
    assert [each["receipt"]["verdict"] for each in report["attempts"][1:]] == ["native", "native"]


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_codex_that_asks_after_its_budget_is_spent_gets_no_new_budget(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """An approval never starts an attempt with a new budget. The run ends because its budget is
    spent, and nothing can be approved. After `retry` the agent asks again."""
    file = outside(tmp_path)
    steps = [f"usage in=60000 out=3000\n{command(file)}", f"usage in=900000 out=90000\n{STOPS}"]
    here = stage("---\n".join([*steps, *steps]))
    limit = ("--model", "gpt-5.5", "--budget-usd", "1")
    report = begin(here, "--agent", "codex", *limit)
    assert report["state"] == "failed"
    assert report["attempts"][-1]["outcome"]["kind"] == "budget_spent"
    assert "budget is spent" in here.perdure("why", "task").out
    assert requests(here) == []
    assert here.perdure("approve", "task").code == 6 and not file.exists()
    assert here.perdure("retry", "task", "--budget-usd", "90").code == 3
    assert [each["state"] for each in requests(here)] == ["open"]


def over_acp(stage: MakeStage, agent: str, script: str) -> Stage:
    extra = {"PERDURE_ACP_CODEX": acp_command()} if agent == "codex" else {}
    return stage(script, extra=extra)


@pytest.mark.parametrize("agent", [pytest.param("opencode", marks=pytest.mark.slow)], indirect=True)
def test_opencode_over_acp_writes_an_approved_file_once(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """OpenCode asks to write a file outside of the workdir. After the approval was used, the same
    call needs another one. If that is refused, the call does not run."""
    file = tmp_path / "outside.txt"
    write = call("write", filePath=str(file), content="ran\n")
    here = over_acp(stage, agent, "---\n".join([write, write, "say Ok.\n", write, "say Never.\n"]))
    report = begin(here, "--agent", "acp-opencode")
    here.nothing_survives()
    assert report["state"] == "queued"
    (request,) = requests(here)
    assert (request["tool"], request["parked"]) == ("edit", False)
    assert json.loads(request["payload"]) == {"filePath": str(file), "content": "ran\n"}
    assert not file.exists()
    done = here.perdure("approve", "task")
    assert (done.code, file.read_text()) == (0, "ran\n"), done.err
    assert here.show()["attempts"][-1]["receipt"]["verdict"] == "native"
    file.unlink()
    assert here.perdure("update", "task", "Once more.").code == 3
    assert [each["state"] for each in requests(here)] == ["answered", "open"]
    done = here.perdure("deny", "task", "--why", "not twice")
    assert (done.code, file.exists()) == (0, False), done.err
    assert "not twice" in said(here.rehearsal.last.messages)


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_codex_over_acp_runs_an_approved_command_once(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """A refusal cancels the turn of this agent, but not the run: a person is asked. The approval
    allows exactly that command."""
    file, other = outside(tmp_path), outside(tmp_path, ".other")
    here = over_acp(stage, agent, "---\n".join(map(escalated, (file, file, other))))
    try:
        report = begin(here, "--agent", "acp-codex")
        assert report["state"] == "queued" and not file.exists()
        (request,) = requests(here)
        assert json.loads(request["payload"])["command"] == f"echo ran >> {file}"
        done = here.perdure("approve", "task")
        assert (done.code, file.read_text()) == (3, "ran\n"), done.err
        assert not other.exists()
        first, second = requests(here)
        assert (first["answer"], second["state"]) == ("allow", "open")
        assert str(other) in second["payload"]
        results = [each for each in here.rehearsal.last.messages if each.role == "tool_result"]
        assert "exited with code 0" in results[-1].text
    finally:
        for each in (file, other):
            each.unlink(missing_ok=True)


def rejected_write(file: Path, content: str = "ran\n") -> str:
    """Return a call of OpenCode that needs a permission, because its file is outside of the
    workdir."""
    return call("write", filePath=str(file), content=content)


@pytest.mark.parametrize("agent", [pytest.param("opencode", marks=pytest.mark.slow)], indirect=True)
def test_opencode_runs_an_approved_call_once_in_another_process(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The turn ends with the call that needs a permission. After the approval exactly this call
    runs, once. The same call a second time, and another call, need new approvals."""
    file, other = tmp_path / "outside.txt", tmp_path / "other.txt"
    append = call(
        "bash", command=f"echo ran >> {file}", description="append", workdir=str(tmp_path)
    )
    steps = [append, append, append, rejected_write(other), "say Ok.\n"]
    here = stage("---\n".join(steps))
    report = run(here)
    here.nothing_survives()
    assert report["state"] == "queued"
    (request,) = requests(here)
    assert (request["state"], request["tool"], request["parked"]) == ("open", "bash", False)
    shown = json.loads(request["payload"])
    assert shown["command"] == f"echo ran >> {file}"
    assert request["sha256"] == digest("bash", shown)
    assert not file.exists()
    done = here.perdure("approve", "task")
    assert (done.code, file.read_text()) == (3, "ran\n"), done.err
    here.nothing_survives()
    prompts = [each.text for each in here.rehearsal.last.messages if each.role == "user"]
    assert "allowed this call" in prompts[-1]
    assert here.show()["attempts"][-1]["receipt"]["verdict"] == "native"
    first, second = requests(here)
    assert (first["answer"], first["given"], second["state"]) == ("allow", 2, "open")
    assert second["sha256"] == first["sha256"]


@pytest.mark.parametrize("agent", [pytest.param("opencode", marks=pytest.mark.slow)], indirect=True)
def test_opencode_is_told_a_refusal_while_the_call_is_made_again(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """perdure is killed while the agent works, and the agent asks a person without a supervisor.
    The refused call does not run when the model repeats it. Its result has the person's text, and
    the turn continues."""
    flag, file = tmp_path / "go", tmp_path / "outside.txt"
    write = rejected_write(file)
    here = stage(f"hold {flag}\n{write}---\n{write}---\nsay Then without.\n")
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
    assert json.loads(request["payload"]) == {"filePath": str(file), "content": "ran\n"}
    done = here.perdure("deny", "task", "--why", "use the workdir")
    assert (done.code, file.exists()) == (0, False), done.err
    results = [each for each in here.rehearsal.last.messages if each.role == "tool_result"]
    assert "A person refused this call: use the workdir" in results[-1].text
    report = here.show()
    assert report["state"] == "succeeded"
    assert report["attempts"][-1]["receipt"]["verdict"] == "native"


@pytest.mark.parametrize("agent", [pytest.param("opencode", marks=pytest.mark.slow)], indirect=True)
def test_opencode_killed_during_an_approved_call_asks_again(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The approval is used up when the call begins. After everything was killed, the model repeats
    the call. It does not run a second time, and a person is asked."""
    file, flag = tmp_path / "outside.txt", tmp_path / "go"
    command = f"echo ran >> {file}; until [ -e {flag} ]; do sleep 0.1; done"
    append = call("bash", command=command, description="append", workdir=str(tmp_path))
    here = stage("---\n".join([append, append, append]))
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
