"""Requests of an agent to a person, with the real Claude Code. Its process ends while the run
waits. After the answer the same call runs or is refused."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure import store as stores
from perdure.model.requests import AnswerKind
from perdure.rules.requests import digest
from tests.journeys.stage import Stage
from tests.journeys.terminal import Terminal

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey
CLAUDE = pytest.mark.parametrize("agent", ["claude"], indirect=True)


def call(tool: str, **given: Any) -> str:
    return f"call {tool} {json.dumps(given)}\n"


def question(words: str) -> str:
    options = [{"label": "Postgres", "description": "big"}, {"label": "SQLite", "description": "s"}]
    asked = {"question": words, "header": "Choice", "multiSelect": False, "options": options}
    return call("AskUserQuestion", questions=[asked])


def requests(stage: Stage, name: str = "task") -> list[dict[str, Any]]:
    done = stage.perdure("requests", name, "--json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


def run(stage: Stage, *words: str, code: int = 3) -> dict[str, Any]:
    done = stage.perdure("run", "--repo", str(stage.repo), "--name", "task", *words, "Do the task.")
    assert done.code == code, (done.out, done.err)
    return stage.show()


def pairs(stage: Stage, tool: str) -> dict[str, list[str]]:
    """Return the results that the model got for each call of the tool, by the call's id."""
    found: dict[str, list[str]] = {}
    for message in stage.rehearsal.last.messages:
        if message.role == "tool_call" and message.text.startswith(tool):
            found[message.call] = []
        if message.role == "tool_result" and message.call in found:
            found[message.call].append(message.text)
    return found


def asking(file: Path, rest: str = "say It is written.\n") -> str:
    """Return a script whose call writes outside of the workdir, so it needs a permission."""
    write = call("Write", file_path=str(file), content="ran\n")
    return f"by history\n{write}---\n{write}---\n{rest}"


@CLAUDE
def test_an_approved_call_runs_once_in_another_process(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """The agent's process has ended while the run waits. Another perdure approves, and exactly that
    call runs: the model gets one call with one result. The approval cannot be used again."""
    file = tmp_path / "outside.txt"
    here = stage(asking(file))
    report = run(here)
    here.nothing_survives()
    assert report["state"] == "queued"
    assert [each["type"] for each in report["conditions"]] == ["needs_input"]
    (request,) = requests(here)
    assert (request["state"], request["tool"], request["parked"]) == ("open", "Write", True)
    assert json.loads(request["payload"]) == {"file_path": str(file), "content": "ran\n"}
    assert not file.exists()
    # The run does not start before the answer, and `wait` returns without waiting for it.
    assert here.perdure("work", "--once").code == 0
    assert here.perdure("wait", "task").code == 3
    assert len(here.show()["attempts"]) == 1

    done = here.perdure("approve", "task")
    assert done.code == 0, done.err
    assert file.read_text() == "ran\n"
    assert pairs(here, "Write")[request["call"]] == [
        text for text in pairs(here, "Write")[request["call"]] if "created" in text
    ]
    assert len(pairs(here, "Write")[request["call"]]) == 1
    report = here.show()
    assert report["state"] == "succeeded"
    assert report["attempts"][-1]["receipt"]["verdict"] == "native"
    (request,) = requests(here)
    assert (request["state"], request["answer"], request["given"]) == ("answered", "allow", 2)
    assert "@" in request["by"]

    # The effect ledger has the call in the attempt that ran it.
    logs = here.perdure("logs", "task", "--json").out.splitlines()
    records = [json.loads(line) for line in logs]
    kinds = [
        (each["attempt"], each["event"]["kind"])
        for each in records
        if each["event"].get("tool_id") == request["call"]
    ]
    assert kinds == [
        (1, "tool_started"),
        (1, "tool_denied"),
        (2, "tool_started"),
        (2, "tool_ended"),
    ]

    # An answer that is late and repeated gets one sentence, and the exit code of a conflict.
    again = here.perdure("approve", "task", "--request", "1")
    assert (again.code, again.err.count("\n")) == (6, 2)
    assert "Request 1 was answered already" in again.err
    again = here.perdure("deny", "task")
    assert (again.code, again.err.count("\n")) == (6, 2)
    assert "task has no open request. Request 1 was answered already by local:" in again.err


@CLAUDE
def test_the_same_call_asks_again_after_its_approval_was_used(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """An approval is valid for one call. When the agent makes the same call again, it asks again."""
    file = tmp_path / "outside.txt"
    write = call("Write", file_path=str(file), content="ran\n")
    here = stage(asking(file, f"{write}---\n{write}---\nsay Twice.\n"))
    run(here)
    assert here.perdure("approve", "task").code == 3
    assert file.read_text() == "ran\n"
    file.unlink()
    first, second = requests(here)
    assert (first["state"], second["state"]) == ("answered", "open")
    assert first["sha256"] == second["sha256"]
    done = here.perdure("deny", "task", "--why", "not twice")
    assert done.code == 0, done.err
    assert not file.exists()
    assert any("not twice" in text for text in pairs(here, "Write")[second["call"]])
    assert here.show()["state"] == "succeeded"


@CLAUDE
def test_a_saved_rule_answers_the_next_such_call(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """After `approve --always` the same call runs without a person each time it is made, and the
    work report names the rule. A rule that denies has precedence over it."""
    file, other = tmp_path / "outside.txt", tmp_path / "other.txt"
    same = call("Write", file_path=str(file), content="ran\n")
    different = call("Write", file_path=str(other), content="ran\n")
    rest = f"{same}---\n{same}---\n{different}---\n{different}---\nsay Ok.\n"
    here = stage(asking(file, rest))
    run(here)
    refused = here.perdure("approve", "task", "--pattern", "x")
    assert (refused.code, "add --always" in refused.err) == (2, True)
    refused = here.perdure("approve", "task", "--always", "--pattern", "x")
    assert (refused.code, "a pattern is for shell commands" in refused.err) == (2, True)
    assert not (here.state / "approvals.toml").exists()
    done = here.perdure("approve", "task", "--always", "--for", "repository")
    # The second such call was allowed by the rule. The different call needs a person.
    assert done.code == 3, done.err
    assert "saved a rule" in done.err
    first, second, third = requests(here)
    assert [each["state"] for each in (first, second, third)] == ["answered", "answered", "open"]
    assert first["rule"] == "" and second["rule"].startswith("allow Write ")
    assert second["by"] == first["by"] and not other.exists()
    assert [len(pairs(here, "Write")[each["call"]]) for each in (first, second)] == [1, 1]
    reports = [each["work"]["ruled"] for each in here.show()["attempts"]]
    assert reports[:2] == [[], []] and reports[2] == [second["rule"]]
    saved = (here.state / "approvals.toml").read_text()
    assert f'repository = "{here.repo}"' in saved and 'decision = "allow"' in saved
    done = here.perdure("deny", "task", "--always", "--why", "not there")
    assert done.code == 0, done.err
    assert not other.exists()


@CLAUDE
def test_a_question_is_answered_after_the_machine_was_lost(stage: MakeStage, agent: str) -> None:
    """A question waits while no process runs, and everything is killed. The answer reaches the
    model as the result of the tool. A second question waits again."""
    script = (
        f"by history\n{question('Which database?')}---\n{question('Which port?')}---\nsay Ok.\n"
    )
    here = stage(script)
    started = here.start("run", "--repo", str(here.repo), "--name", "task", "Do the task.")
    here.until(lambda: here.perdure("requests").out.startswith("task"), "it asks")
    here.lose_machine(started)
    assert "it asks: Which database? (Postgres, SQLite)" in here.perdure("why", "task").out
    wrong = here.perdure("approve", "task")
    assert (wrong.code, "is a question" in wrong.err) == (2, True)
    done = here.perdure("answer", "task", "SQLite, please")
    assert done.code == 3, done.err
    assert [each["state"] for each in requests(here)] == ["answered", "open"]
    done = here.perdure("answer", "task", "5432")
    assert done.code == 0, done.err
    results = list(pairs(here, "AskUserQuestion").values())
    assert [len(texts) for texts in results] == [1, 1]
    assert '"Which database?"="SQLite, please"' in results[0][0]
    assert '"Which port?"="5432"' in results[1][0]


@CLAUDE
def test_new_instructions_supersede_a_request(stage: MakeStage, agent: str, tmp_path: Path) -> None:
    """If a run got new instructions, the call does not run, and the late approval is refused."""
    file = tmp_path / "outside.txt"
    here = stage(asking(file, "say Never mind.\n---\nsay Something else.\n"))
    run(here)
    done = here.perdure("update", "task", "Do something else.")
    assert done.code == 0, done.err
    assert not file.exists()
    (request,) = requests(here)
    assert request["state"] == "superseded"
    late = here.perdure("approve", "task", "--request", "1")
    assert (late.code, "not open any more" in late.err) == (6, True)


@CLAUDE
def test_a_call_is_asked_for_again_after_new_instructions(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """New instructions cancel an approval that no attempt has used. If the agent makes the call
    after all, a person is asked again, and the call runs once."""
    file = tmp_path / "outside.txt"
    write = call("Write", file_path=str(file), content="ran\n")
    here = stage(asking(file, f"{write}---\n{write}---\nsay Once.\n"))
    run(here)
    with closing(stores.open(here.state / "perdure.db")) as store:
        store.answer(store.get("task").id, 1, AnswerKind.ALLOW, "", "ada")
    done = here.perdure("update", "task", "Think about it.")
    assert (done.code, file.exists()) == (3, False), done.err
    assert [each["state"] for each in requests(here)] == ["superseded", "open"]
    assert "allow by ada, then superseded" in here.perdure("requests", "task").out
    done = here.perdure("approve", "task")
    assert (done.code, file.read_text()) == (0, "ran\n"), done.err


@CLAUDE
def test_an_approval_is_not_for_another_call(stage: MakeStage, agent: str, tmp_path: Path) -> None:
    """If the call in the conversation is not the approved one, it is refused, because its digest
    differs from that of the approved call."""
    file = tmp_path / "outside.txt"
    here = stage(asking(file))
    run(here)
    # This changes the stored request, as if another command had been shown.
    with sqlite3.connect(here.state / "perdure.db") as database:
        (body,) = database.execute("SELECT body FROM requests").fetchone()
        told = json.loads(body)
        shown = {**json.loads(told["payload"]), "content": "nothing else"}
        told |= {"payload": json.dumps(shown), "sha256": digest(told["tool"], shown)}
        database.execute("UPDATE requests SET body = ?", (json.dumps(told),))
    assert here.perdure("approve", "task").code == 3
    assert not file.exists()
    (texts,) = [
        texts for key, texts in pairs(here, "Write").items() if key == requests(here)[0]["call"]
    ]
    assert "not the call that was shown" in texts[0]


@CLAUDE
def test_a_call_with_half_a_surrogate_pair_can_only_be_refused(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """A model can write half a surrogate pair, which no store accepts. The run waits as for any
    other call, but this call cannot be allowed. After its refusal the agent continues."""
    file = tmp_path / "outside.txt"
    write = call("Write", file_path=str(file), content="half \ud83d\n")
    here = stage(f"by history\n{write}---\nsay Without it.\n")
    assert run(here)["state"] == "queued"
    (request,) = requests(here)
    assert json.loads(request["payload"])["content"] == "half ?\n"
    refused = here.perdure("approve", "task")
    assert "it can only be refused" in refused.err or "cannot be allowed" in refused.err
    assert (refused.code, file.exists()) == (2, False), refused.err
    denied = here.perdure("deny", "task", "--why", "not that")
    assert (denied.code, file.exists()) == (0, False), denied.err
    assert here.show()["attempts"][-1]["receipt"]["verdict"] == "native"


@CLAUDE
def test_a_request_that_nobody_answers_is_refused(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """When the time for an answer is over, the run is due without a person, and the call is
    refused."""
    file = tmp_path / "outside.txt"
    here = stage(asking(file))
    here.environ["PERDURE_REQUEST_EXPIRY"] = "1s"
    here.perdure("run", "--repo", str(here.repo), "--name", "task", "-d", "Do the task.")

    def over() -> bool:
        here.perdure("work", "--once")
        return bool(here.show()["state"] == "succeeded")

    here.until(over, "the request has expired")
    assert not file.exists()
    (request,) = requests(here)
    assert (request["state"], request["answer"]) == ("expired", "deny")
    assert any("Nobody answered in time" in text for text in pairs(here, "Write")[request["call"]])


@CLAUDE
def test_an_agent_asks_while_perdure_is_dead(stage: MakeStage, agent: str, tmp_path: Path) -> None:
    """perdure is killed while the agent works. The agent asks a person, and its process ends. The
    next supervisor finds the request, and the person's answer reaches the conversation."""
    flag = tmp_path / "go"
    here = stage(f"by history\nhold {flag}\n{question('Which database?')}---\nsay Ok.\n")
    started = here.start("run", "--repo", str(here.repo), "--name", "task", "Do the task.")
    here.attempt_directory(1)
    started.kill()
    here.finish(started)
    assert requests(here) == []
    flag.touch()

    def taken_over() -> list[dict[str, Any]]:
        here.perdure("work", "--once")
        return requests(here)

    (request,) = here.until(taken_over, "the request is stored")
    assert (request["state"], request["parked"]) == ("open", True)
    done = here.perdure("answer", "task", "SQLite")
    assert done.code == 0, done.err
    (texts,) = pairs(here, "AskUserQuestion").values()
    assert len(texts) == 1
    assert '"Which database?"="SQLite"' in texts[0]
    assert len(here.show()["attempts"]) == 2


@CLAUDE
def test_on_a_terminal_attach_asks_again(stage: MakeStage, agent: str, tmp_path: Path) -> None:
    """On a terminal that follows the run, the request is shown and can be answered. Ctrl-C leaves
    it open and prints how to answer it later. `attach` asks again."""
    file = tmp_path / "outside.txt"
    script = f"by history\n{question('Which database?')}---\n{asking(file).partition(chr(10))[2]}"
    here = stage(script)
    terminal = Terminal(here, 100)
    python = f"{sys.executable} -m perdure"
    try:
        terminal.type(f"{python} run --name task 'Do the task.'", "Enter")
        screen = "\n".join(terminal.shows("Your answer:"))
        assert "| Which database?" in screen and "|   2. SQLite" in screen
        terminal.type("2", "Enter")
        screen = "\n".join(terminal.shows("Allow it once?"))
        assert "| tool: Write" in screen and "| + ran" in screen
        terminal.type("yep", "Enter")
        terminal.type("C-c")
        terminal.shows("left open; answer later: perdure approve task, or deny task")
        assert not file.exists() and requests(here)[1]["state"] == "open"
        # Otherwise the earlier question on the screen counts, and the answer to it comes too early:
        # a prompt drops what was typed before it.
        terminal.type("clear", "Enter")
        here.until(lambda: "left open" not in "\n".join(terminal.screen()), "it is cleared")
        terminal.type(f"{python} attach task", "Enter")
        terminal.shows("Allow it once?")
        terminal.type("y", "Enter")
        here.until(lambda: here.show()["state"] == "succeeded", "the run ends")
    finally:
        terminal.tmux("kill-server")
    assert file.read_text() == "ran\n"
    first, second = requests(here)
    assert (first["words"], second["answer"]) == ("SQLite", "allow")
    assert [len(texts) for texts in pairs(here, "AskUserQuestion").values()] == [1]
    assert len(pairs(here, "Write")[second["call"]]) == 1


@CLAUDE
def test_an_agent_that_is_killed_after_a_refusal_goes_on(
    stage: MakeStage, agent: str, tmp_path: Path
) -> None:
    """When everything is killed, the refusal is already in the conversation. It is not given a
    second time, which the CLI would refuse, and the next attempt continues."""
    file, flag = tmp_path / "outside.txt", tmp_path / "go"
    here = stage(asking(file, f"hold {flag}\nsay Then without.\n"))
    run(here)
    started = here.start("deny", "task", "--why", "not there")
    here.until(
        lambda: any(
            "not there" in text for path in here.transcripts() for text in [path.read_text()]
        ),
        "the refusal is in the conversation",
    )
    here.lose_machine(started)
    flag.touch()

    def over() -> bool:
        here.perdure("work", "--once")
        return bool(here.show()["state"] == "succeeded")

    here.until(over, "the run goes on")
    assert not file.exists()
    report = here.show()
    assert [each["outcome"]["kind"] for each in report["attempts"]] == [
        "needs_input",
        "lost",
        "succeeded",
    ]
    assert report["attempts"][-1]["receipt"]["verdict"] in ("native", "repaired")
