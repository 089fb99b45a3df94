"""One task with the real CLIs. It is killed in many ways and continues each time.

Every journey checks the messages that reached the model, the receipts, the processes that are left,
and the files.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.finding import first_file
from tests.journeys.stage import Stage, native, said

MakeStage = Callable[..., Stage]

MODELS = {"claude": "claude-opus-4-8", "codex": "gpt-5.5"}
RUN = ("run", "--name", "task", "--permissions", "full", "--json", "--agent")
PROMPT = "Write one.txt, then two.txt. The magic word is quercus."

TWO_TURNS = """by history
run echo one > one.txt
---
say The first file is written.
run echo two > two.txt
---
say Both files are written.
"""

HANGS_IN_A_REPLY = TWO_TURNS.replace("say The first", "hang\nsay The first")


def held(go: Path) -> str:
    """Return a script whose second reply waits until the file exists."""
    return TWO_TURNS.replace("say The first", f"hold {go}\nsay The first")


HANGS_IN_A_TOOL = """by history
run echo one > one.txt; echo begun > begun.txt; test -e go.txt || sleep 98; echo late > late.txt
---
say Both files are written.
"""

pytestmark = pytest.mark.journey


def run_to(stage: Stage, *more: str) -> list[str]:
    return [*RUN, stage.agent, *more]


def begun_in_tool(stage: Stage) -> Path:
    """Wait until the tool runs and the agent has reported the call. An agent that reports a call
    only at its end must have recorded it. Return the workdir."""
    found: Path = stage.until(lambda: first_file(stage.home, "begun.txt"), "the tool runs")
    if stage.agent == "opencode":
        stage.until(
            lambda: any(b"sleep 98" in content for content in stage.conversations().values()),
            "the tool is noted",
        )
        return found.parent
    stage.until(
        lambda: b"sleep 98" in (stage.attempt_directory(1) / "stdout").read_bytes(),
        "the agent announces the tool",
    )
    return found.parent


def went_on_natively(stage: Stage, report: dict, attempt: int = 2) -> None:
    """Check that the attempt resumed the first conversation, that the receipt says so, and that the
    model got the earlier messages."""
    first, later = report["attempts"][0], report["attempts"][attempt - 1]
    assert later["continuation"] == "resume"
    assert later["session_id"] == first["session_id"]
    assert later["receipt"]["verdict"] == "native", later["receipt"]
    assert later["receipt"]["evidence"]["prefix_kept"] is True
    shown = said(stage.rehearsal.last.messages)
    assert "quercus" in shown
    assert "echo one > one.txt" in shown
    assert len({request.session for request in stage.rehearsal.requests}) == 1


def test_a_task_succeeds_in_a_worktree_of_its_own(stage: MakeStage) -> None:
    """The first attempt is fresh. Its files are in its own worktree on its own branch, and the
    repository is unchanged."""
    one = stage(TWO_TURNS)
    done = one.perdure(*run_to(one), PROMPT)
    assert done.code == 0, done.err
    report = done.json
    assert (report["schema_version"], report["state"]) == (1, "succeeded")
    (attempt,) = report["attempts"]
    assert (attempt["continuation"], attempt["outcome"]["kind"], attempt["receipt"]["verdict"]) == (
        "fresh",
        "succeeded",
        "fresh",
    )
    workdir = Path(report["workspace"]["path"])
    assert (workdir / "one.txt").read_text() == "one\n"
    assert (workdir / "two.txt").read_text() == "two\n"
    assert report["workspace"]["branch"] == "perdure/task"
    assert not (one.repo / "one.txt").exists()
    assert one.rehearsal.prompts() == [PROMPT]
    assert one.show() == report
    one.nothing_survives()


def test_killed_in_a_reply(stage: MakeStage) -> None:
    """The agent is killed while the model answers. The retry continues in the same conversation."""
    one = stage(HANGS_IN_A_REPLY)
    started = one.start(*run_to(one, "--attempts", "1"), PROMPT)
    one.rehearsal.wait_for(2)
    os.kill(one.agent_pid(), signal.SIGKILL)
    failed = one.finish(started)
    assert failed.code == 1
    assert failed.json["attempts"][0]["outcome"]["kind"] == "failed"
    assert failed.json["attempts"][0]["outcome"]["signal"] == signal.SIGKILL
    one.nothing_survives()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    went_on_natively(one, done.json)
    assert "ended early" in one.rehearsal.prompts()[-1]
    assert (Path(done.json["workspace"]["path"]) / "one.txt").read_text() == "one\n"
    one.nothing_survives()


def test_killed_in_a_tool(stage: MakeStage) -> None:
    """The agent is killed while its command runs. The command is ended too, and the prompt of the
    next attempt says what was running."""
    one = stage(HANGS_IN_A_TOOL)
    started = one.start(*run_to(one, "--attempts", "1"), PROMPT)
    workdir = begun_in_tool(one)
    os.kill(one.agent_pid(), signal.SIGKILL)
    failed = one.finish(started)
    assert failed.code == 1, failed.err
    one.nothing_survives()
    (workdir / "go.txt").touch()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    went_on_natively(one, done.json)
    assert "sleep 98" in one.rehearsal.prompts()[-1]
    assert (workdir / "begun.txt").exists()
    one.nothing_survives()


def test_a_killed_agent_is_tried_again_without_a_person(stage: MakeStage) -> None:
    """With attempts left, the run continues by itself after a kill, and succeeds."""
    one = stage(HANGS_IN_A_REPLY)
    started = one.start(*run_to(one, "--attempts", "3"), PROMPT)
    one.rehearsal.wait_for(2)
    os.kill(one.agent_pid(), signal.SIGKILL)
    done = one.finish(started)
    assert done.code == 0, done.err
    assert [attempt["number"] for attempt in done.json["attempts"]] == [1, 2]
    went_on_natively(one, done.json)
    one.nothing_survives()


def test_the_supervisor_is_killed_and_the_agent_adopted(stage: MakeStage, tmp_path: Path) -> None:
    """Only perdure is killed. The agent continues, and the retry follows the same attempt to its
    success."""
    one = stage(held(tmp_path / "go"))
    started = one.start(*run_to(one), PROMPT)
    one.rehearsal.wait_for(2)
    agent = one.agent_pid()
    started.kill()
    one.finish(started)
    assert agent in one.marked()
    retried = one.start("retry", "task", "--json")
    one.until(
        lambda: "attempt_adopted" in one.perdure("logs", "task", "--json").out, "it is adopted"
    )
    (tmp_path / "go").touch()
    done = one.finish(retried)
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    assert (attempt["outcome"]["kind"], attempt["receipt"]["verdict"]) == ("succeeded", "fresh")
    assert one.rehearsal.prompts() == [PROMPT]
    assert (Path(done.json["workspace"]["path"]) / "two.txt").exists()
    one.nothing_survives()


def test_the_agent_ends_while_nobody_watches(stage: MakeStage, tmp_path: Path) -> None:
    """perdure is killed, then the agent finishes without a supervisor. The retry records the
    success and starts nothing."""
    one = stage(held(tmp_path / "go"))
    started = one.start(*run_to(one), PROMPT)
    one.rehearsal.wait_for(2)
    directory = one.attempt_directory(1)
    started.kill()
    one.finish(started)
    (tmp_path / "go").touch()
    one.until((directory / "exit.json").exists, "the agent ends by itself")
    requests = len(one.rehearsal.requests)
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == ["succeeded"]
    assert len(one.rehearsal.requests) == requests
    one.nothing_survives()


def test_everything_is_killed_at_once(stage: MakeStage) -> None:
    """The machine is lost in the middle of a command. The attempt is recorded as lost, and the next
    one continues natively."""
    one = stage(HANGS_IN_A_TOOL)
    started = one.start(*run_to(one), PROMPT)
    workdir = begun_in_tool(one)
    one.lose_machine(started)
    (workdir / "go.txt").touch()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == [
        "lost",
        "succeeded",
    ]
    went_on_natively(one, done.json)
    assert (workdir / "begun.txt").exists()
    one.nothing_survives()


def test_an_update_carries_only_what_is_new(stage: MakeStage) -> None:
    """New instructions resume the same conversation. The new prompt has only them, and nothing that
    was said before."""
    one = stage(TWO_TURNS + "---\nrun echo three > three.txt\n---\nsay Three.\n")
    assert one.perdure(*run_to(one), PROMPT).code == 0
    done = one.perdure("update", "task", "Now write three.txt.", "--json")
    assert done.code == 0, done.err
    assert done.json["context_version"] == 2
    went_on_natively(one, done.json)
    first, second = one.rehearsal.prompts()
    assert first == PROMPT
    assert "Now write three.txt." in second
    assert "quercus" not in second
    usage = [attempt["usage"]["input"] for attempt in done.json["attempts"]]
    assert usage == [300, 200], usage
    assert (Path(done.json["workspace"]["path"]) / "three.txt").exists()
    one.nothing_survives()


def test_two_tasks_of_one_service_at_once(stage: MakeStage) -> None:
    """Two tasks of one service run side by side, each in its own directory and conversation."""
    one = stage(
        "match alpha\nrun echo alpha > a.txt\n---\nslow 1\nsay A.\n===\nmatch beta\nrun echo beta "
        "> b.txt\n---\nslow 1\nsay B.\n"
    )
    words = ["run", "--permissions", "full", "--json", "--agent", one.agent, "--service", "billing"]
    started = [one.start(*words, "--task", task, f"Do {task}.") for task in ("alpha", "beta")]
    alpha, beta = (one.finish(each) for each in started)
    assert (alpha.code, beta.code) == (0, 0), alpha.err + beta.err
    first, second = (Path(each.json["workspace"]["path"]) for each in (alpha, beta))
    assert first.parts[-3:] == ("billing", ".task", "alpha")
    assert second.parts[-3:] == ("billing", ".task", "beta")
    assert sorted(path.name for path in first.iterdir() if path.suffix == ".txt") == ["a.txt"]
    assert sorted(path.name for path in second.iterdir() if path.suffix == ".txt") == ["b.txt"]
    sessions = {each.json["attempts"][0]["session_id"] for each in (alpha, beta)}
    assert len(sessions) == 2
    for request in one.rehearsal.requests:
        assert ("alpha" in said(request.messages)) != ("beta" in said(request.messages))
    one.nothing_survives()


def test_the_same_task_twice_at_once(stage: MakeStage, tmp_path: Path) -> None:
    """A second perdure on a running task is refused with exit code 6, and the first is not
    disturbed."""
    one = stage(f"run echo one > one.txt\n---\nhold {tmp_path / 'go'}\nsay Done.\n")
    words = [
        "run",
        "--permissions",
        "full",
        "--json",
        "--agent",
        one.agent,
        "--service",
        "billing",
        "--task",
        "42",
        "Do it.",
    ]
    started = one.start(*words)
    one.rehearsal.wait_for(2)
    second = one.perdure(*words)
    assert second.code == 6, second.err
    assert "running" in second.err
    (tmp_path / "go").touch()
    done = one.finish(started)
    assert done.code == 0, done.err
    assert one.perdure("retry", done.json["name"]).code == 6
    rows = one.perdure("ls", "--json").json["runs"]
    assert [row["state"] for row in rows] == ["succeeded"]
    one.nothing_survives()


def lose_conversation(stage: Stage, *, copies: bool) -> None:
    for path in stage.transcripts() + (stage.copies() if copies else []):
        path.unlink()


@pytest.mark.parametrize("policy", ["strict", "disclose", "fresh-ok"])
def test_the_session_file_is_deleted(stage: MakeStage, policy: str) -> None:
    """With every policy perdure's own copy is restored, and the conversation continues natively."""
    one = stage(TWO_TURNS + "---\nsay Three.\n")
    assert one.perdure(*run_to(one, "--continuity", policy), PROMPT).code == 0
    lose_conversation(one, copies=False)
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    went_on_natively(one, done.json)
    assert done.json["attempts"][1]["rung"] == "copy"
    one.nothing_survives()


def test_the_conversation_is_lost_and_the_policy_strict(stage: MakeStage) -> None:
    """If perdure's own copies are gone too, the policy `strict` stops the run with exit code 3 and
    says why. Nothing reaches the model."""
    one = stage(TWO_TURNS + "---\nsay Three.\n")
    assert one.perdure(*run_to(one, "--continuity", "strict"), PROMPT).code == 0
    lose_conversation(one, copies=True)
    before = len(one.rehearsal.requests)
    refused = one.perdure("update", "task", "Go further.", "--json")
    assert refused.code == 3, refused.err
    assert refused.json["state"] == "failed"
    assert [condition["type"] for condition in refused.json["conditions"]] == ["needs_person"]
    assert len(one.rehearsal.requests) == before
    why = one.perdure("why", "task").out
    assert "strict" in why and "; \n" not in why
    assert (Path(refused.json["workspace"]["path"]) / "two.txt").exists()
    # The command that the error names continues the run. A retry without its flag would be refused
    # again.
    again = one.perdure("retry", "task", "--json")
    assert again.code == 3 and "perdure retry task --continuity disclose" in again.err
    # A retry may change these limits as well as the policy.
    limits = ("--budget-usd", "9", "--timeout", "30m", "--attempts", "2")
    model = ("--model", MODELS[one.agent]) if one.agent in MODELS else ()
    words = ("--continuity", "disclose", *limits, *model)
    done = one.perdure("retry", "task", *words, "--json")
    assert done.code == 0, done.err
    assert (done.json["policy"], done.json["attempts"][-1]["receipt"]["verdict"]) == (
        "disclose",
        "rebuilt",
    )
    assert done.json["attempts_allowed"] == len(again.json["attempts"]) + 2
    changed = [*(["model"] if model else []), "timeout_s", "budget_usd", "continuity"]
    assert f"changed by you: {', '.join(changed)}" in one.perdure("logs", "task").out
    if model:
        assert one.rehearsal.requests[-1].model == model[1]


def test_the_conversation_is_lost_and_disclosed(stage: MakeStage) -> None:
    """The policy `disclose` begins a new conversation with a brief of what was done. The receipt
    says `rebuilt`."""
    one = stage(TWO_TURNS.replace("by history\n", "") + "---\nsay Three.\n")
    assert one.perdure(*run_to(one, "--continuity", "disclose"), PROMPT).code == 0
    lose_conversation(one, copies=True)
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][1]
    assert (last["continuation"], last["receipt"]["verdict"]) == ("rebuild", "rebuilt")
    assert last["lost_session_id"] == done.json["attempts"][0]["session_id"] != last["session_id"]
    (brief,) = one.rehearsal.prompts()
    for piece in (
        PROMPT,
        "Go further.",
        "your own earlier work",
        "echo two > two.txt",
        "Both files are written.",
    ):
        assert piece in brief
    one.nothing_survives()


def test_the_conversation_is_lost_and_fresh_is_ok(stage: MakeStage) -> None:
    """The policy `fresh-ok` begins a new conversation. The receipt names the one that was lost."""
    one = stage(TWO_TURNS.replace("by history\n", "") + "---\nsay Three.\n")
    assert one.perdure(*run_to(one, "--continuity", "fresh-ok"), PROMPT).code == 0
    lose_conversation(one, copies=True)
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    last = done.json["attempts"][1]
    lost = done.json["attempts"][0]["session_id"]
    assert (last["continuation"], last["receipt"]["verdict"], last["lost_session_id"]) == (
        "fresh",
        "fresh",
        lost,
    )
    assert lost in " ".join(last["receipt"]["reasons"])
    assert "your own earlier work" in one.rehearsal.prompts()[-1]


def test_a_stranger_spoke_between_the_attempts(stage: MakeStage) -> None:
    """A person continued the conversation between two attempts. perdure notices this, tells the
    agent, and keeps it as a condition of the run."""
    one = stage(TWO_TURNS + "---\nsay To a stranger.\n---\nsay Three.\n")
    first = one.perdure(*run_to(one), PROMPT).json
    by_hand = one.resume_by_hand(
        first["attempts"][0]["session_id"], "A stranger asks.", Path(first["workspace"]["path"])
    )
    assert by_hand.returncode == 0, by_hand.stderr
    done = one.perdure("update", "task", "Go further.", "--json")
    assert done.code == 0, done.err
    assert done.json["attempts"][1]["receipt"]["verdict"] == "native"
    assert done.json["attempts"][1]["receipt"]["evidence"]["turns_between"] == 1
    assert [condition["type"] for condition in done.json["conditions"]] == ["collision"]
    assert "somebody else" in one.rehearsal.prompts()[-1]
    assert "COLLISION" in one.perdure("logs", "task").out


def test_a_stranger_is_on_the_conversation_at_the_same_time(
    stage: MakeStage, tmp_path: Path
) -> None:
    """If another program writes to the conversation while the agent works, no receipt hides that
    behind a native success.

    Claude Code, Gemini CLI and OpenCode accept the second writer, so the attempt is broken and not
    a success. Codex itself refuses the second writer.
    """
    # The other program's prompt has its own script, so that it gets an answer while the agent's
    # reply waits.
    one = stage(f"match A stranger asks.\nsay To a stranger.\n===\n{held(tmp_path / 'go')}")
    started = one.start(*run_to(one, "--attempts", "1"), PROMPT)
    one.rehearsal.wait_for(2)
    (session,) = one.until(one.conversations, "the transcript is there")
    by_hand = one.resume_by_hand(session, "A stranger asks.", one.agent_pid_cwd())
    (tmp_path / "go").touch()
    done = one.finish(started)
    (attempt,) = done.json["attempts"]
    if one.agent == "codex":
        assert by_hand.returncode == 1
        assert "active writer" in by_hand.stderr
        assert (done.code, attempt["receipt"]["verdict"]) == (0, "fresh")
        return
    assert by_hand.returncode == 0, by_hand.stderr
    assert done.code == 3
    assert attempt["receipt"]["verdict"] == "broken"
    assert attempt["outcome"]["kind"] == "continuity_lost"
    assert "collision" in [condition["type"] for condition in done.json["conditions"]]
    assert attempt["receipt"]["evidence"]["foreign_turns"] == 1
    one.nothing_survives()


def test_a_usage_limit_waits_until_its_time(stage: MakeStage) -> None:
    """After a usage limit the run is queued until the time that the service named. Then it
    continues in the same conversation.

    OpenCode waits by itself, without output.
    """
    one = stage(TWO_TURNS.replace("say The first", "limit 8\nsay The first"), subscription=True)
    started = one.start(*run_to(one, "--attempts", "1"), PROMPT)
    if one.agent == "opencode":
        done = one.finish(started)
        assert (done.code, [attempt["outcome"]["kind"] for attempt in done.json["attempts"]]) == (
            0,
            ["succeeded"],
        ), done.err
        assert [request.answer for request in one.rehearsal.requests] == [
            "reply",
            "limit",
            "reply",
            "reply",
        ]
        return
    done = one.finish(started)
    assert done.code == 0, done.err
    # Read the journal, not `ls`: on a slow machine the wait can end before `ls` has begun.
    events = [
        json.loads(line)["event"] for line in one.perdure("logs", "task", "--json").out.splitlines()
    ]
    (waits,) = [event for event in events if event["kind"] == "run_queued"]
    assert waits["reason"].startswith("rate_limited")
    first, second = done.json["attempts"]
    assert first["outcome"]["kind"] == "rate_limited"
    assert second["started"] >= waits["run_after"] == first["outcome"]["until"]
    went_on_natively(one, done.json)
    one.nothing_survives()


def test_stop_and_go_on(stage: MakeStage) -> None:
    """`perdure stop` ends the agent and its command. `retry` continues in the same conversation."""
    one = stage(HANGS_IN_A_TOOL)
    started = one.start(*run_to(one), PROMPT)
    workdir = begun_in_tool(one)
    assert one.perdure("stop", "task").code == 0
    assert one.finish(started).code == 130
    one.nothing_survives()
    (workdir / "go.txt").touch()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    went_on_natively(one, done.json)


def test_interrupt_at_the_terminal(stage: MakeStage) -> None:
    """Ctrl-C ends the attempt properly: it is cancelled and recorded, and nothing is left alive."""
    one = stage(HANGS_IN_A_REPLY)
    started = one.start(*run_to(one), PROMPT)
    one.rehearsal.wait_for(2)
    started.send_signal(signal.SIGINT)
    stopped = one.finish(started)
    assert stopped.code == 130
    assert stopped.json["state"] == "cancelled"
    one.nothing_survives()


def test_detached(stage: MakeStage, tmp_path: Path) -> None:
    """`--detach` returns with the name while the agent works. The run succeeds in the background,
    and `logs -f` follows it to its end."""
    one = stage(held(tmp_path / "go"))
    done = one.perdure(
        "run", "--name", "task", "--permissions", "full", "--detach", "--agent", one.agent, PROMPT
    )
    assert (done.code, done.out.strip()) == (0, "task"), done.err
    (tmp_path / "go").touch()
    logs = one.perdure("logs", "-f", "task")
    assert "Both files are written." in logs.out
    assert one.show()["state"] == "succeeded"


def test_verify_goes_back_into_the_conversation(stage: MakeStage) -> None:
    """A failed check makes the attempt fail. The next attempt gets the check's output in the same
    conversation."""
    one = stage(
        "by history\nrun echo one > one.txt\n---\nsay I am done.\n---\nrun echo two > "
        "two.txt\n---\nsay Now I am.\n"
    )
    done = one.perdure(
        *run_to(one, "--verify", "test -e two.txt || { echo two is missing; exit 3; }"), PROMPT
    )
    assert done.code == 0, done.err
    assert "two is missing" in one.rehearsal.prompts()[-1]
    went_on_natively(one, done.json)


def test_the_supervisor_is_killed_in_the_check(stage: MakeStage) -> None:
    """perdure is killed while the verify command runs. The retry ends that command, checks again,
    and records the success."""
    one = stage(TWO_TURNS)
    check = "echo checked >> ../checks.txt; test -e again.txt || { touch again.txt; sleep 97; }"
    started = one.start(*run_to(one, "--verify", check), PROMPT)
    one.until(lambda: first_file(one.home, "again.txt"), "the check runs")
    started.kill()
    one.finish(started)
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    assert attempt["outcome"]["kind"] == "succeeded"
    assert next(iter(one.home.rglob("checks.txt"))).read_text() == "checked\nchecked\n"
    one.nothing_survives()


def test_handed_over_to_another_agent(stage: MakeStage) -> None:
    """`retry --agent` continues with another CLI in the same workdir: a new conversation with a
    brief, and the receipt `rebuilt`."""
    one = stage(HANGS_IN_A_REPLY)
    other = "codex" if one.agent == "claude" else "claude"
    one.environ |= {
        f"PERDURE_{other.upper()}": str(native(other)),
        **one.rehearsal.environ(other, home=one.home / f".{other}"),
    }
    started = one.start(*run_to(one, "--attempts", "1"), PROMPT)
    one.rehearsal.wait_for(2)
    # An agent may ask for its next reply before it has reported its command.
    one.until(
        lambda: b"one.txt" in (one.attempt_directory(1) / "stdout").read_bytes(),
        "the command is told",
    )
    os.kill(one.agent_pid(), signal.SIGKILL)
    first = one.finish(started).json
    done = one.perdure("retry", "task", "--agent", other, "--json")
    assert done.code == 0, done.err
    report = done.json
    assert (report["agent"], report["workspace"]) == (other, first["workspace"])
    assert (report["attempts"][1]["continuation"], report["attempts"][1]["receipt"]["verdict"]) == (
        "rebuild",
        "rebuilt",
    )
    brief = one.rehearsal.prompts()[0]
    for piece in (PROMPT, "echo one > one.txt", "your own earlier work"):
        assert piece in brief
    one.nothing_survives()


def test_effects_are_told_to_the_next_attempt(stage: MakeStage) -> None:
    """An attempt pushed and was killed afterwards. The push is in the effect ledger, and the next
    prompt tells the agent to check it."""
    one = stage(
        HANGS_IN_A_TOOL.replace(
            "echo one > one.txt;", "echo one > one.txt; git push ../nowhere main;"
        )
    )
    started = one.start(*run_to(one, "--attempts", "1"), PROMPT)
    workdir = begun_in_tool(one)
    os.kill(one.agent_pid(), signal.SIGKILL)
    effects = one.finish(started).json["attempts"][0]["effects"]
    pushed = [effect for effect in effects if effect["kind"] == "push"]
    assert [(each["ok"], each["outcome"], each["possible"]) for each in pushed] == [
        (None, "unknown", False)
    ]
    (workdir / "go.txt").touch()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    last = one.rehearsal.prompts()[-1]
    assert "it is not known how it ended. Before you repeat any of it, verify" in last
    assert "git push ../nowhere main" in last
    assert "git push" in one.perdure("why", "task").out


def test_an_update_while_the_agent_works(stage: MakeStage, tmp_path: Path) -> None:
    """New instructions for a running task wait for the end of its attempt. Then they continue the
    same conversation without another command."""
    one = stage(held(tmp_path / "go") + "---\nsay Three.\n")
    started = one.start(*run_to(one), PROMPT)
    one.rehearsal.wait_for(2)
    updating = one.start("update", "task", "Then write three.txt.", "--json")
    one.until(lambda: one.show()["context_version"] == 2, "the update is there")
    (tmp_path / "go").touch()
    done = one.finish(updating)
    assert done.code == 0, done.err
    assert one.finish(started).code == 0
    assert [attempt["context_version"] for attempt in done.json["attempts"]] == [1, 2]
    went_on_natively(one, done.json)
    first, second = one.rehearsal.prompts()
    assert first == PROMPT
    assert "Then write three.txt." in second


def test_drift_is_shown(stage: MakeStage) -> None:
    """`why` shows that another account was used in between, without any part of the credentials.
    Permissions stay as they were."""
    one = stage(TWO_TURNS + "---\nsay Three.\n")
    assert one.perdure(*run_to(one), PROMPT).code == 0
    key = {
        "claude": "ANTHROPIC_API_KEY",
        "codex": "OPENAI_API_KEY",
        "gemini": "GEMINI_API_KEY",
        "opencode": "OPENAI_API_KEY",
    }[one.agent]
    one.environ[key] = "another-dummy-key"
    assert one.perdure("update", "task", "Go further.").code == 0
    why = one.perdure("why", "task").out
    assert "drift     the account was" in why
    assert "dummy" not in why
    first, second = one.show()["attempts"]
    assert first["flags"]["permissions"] == second["flags"]["permissions"] == "full"


def test_an_agent_that_asks_again_without_end_is_ended(agent: str, stage: MakeStage) -> None:
    """If answers break off, OpenCode repeats its request at once, without end. perdure ends it
    after a few times, and queues the run for later."""
    if agent != "opencode":
        return
    one = stage(TWO_TURNS.replace("say The first", "cut clean x400\nsay The first"))
    started = one.start(*run_to(one), PROMPT)
    one.until(
        lambda: [row for row in one.perdure("ls", "--json").json["runs"] if row["reason"]],
        "the run waits",
    )
    (first,) = one.show()["attempts"]
    assert first["outcome"]["kind"] == "overloaded", first["outcome"]
    assert "again and again" in first["outcome"]["detail"]
    one.nothing_survives()
    assert one.perdure("stop", "task").code == 0
    one.finish(started)


def test_killed_before_its_first_word(agent: str, stage: MakeStage) -> None:
    """The machine is lost before the model answered. The conversation exists, and the retry
    continues in it.

    OpenCode has printed nothing by then, not even an id. The conversation is found by the title
    that perdure gave it.
    """
    one = stage("hang\nrun echo one > one.txt\n---\nsay Done.\n")
    started = one.start(*run_to(one, "--attempts", "1"), PROMPT)
    one.rehearsal.wait_for(1)
    one.until(
        lambda: any(b"quercus" in content for content in one.conversations().values()),
        "the prompt is kept",
    )
    one.lose_machine(started)
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    first, second = done.json["attempts"]
    assert (second["continuation"], second["receipt"]["verdict"]) == ("resume", "native"), second
    assert second["session_id"] == first["session_id"] != ""
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_a_transcript_that_was_changed_between_the_attempts(stage: MakeStage) -> None:
    """The transcript was cut between two attempts. The next attempt continues at once from
    perdure's own copy."""
    one = stage(TWO_TURNS + "---\nsay Three.\n---\nsay Four.\n---\nsay Five.\n")
    assert one.perdure(*run_to(one), PROMPT).code == 0
    (transcript,) = one.transcripts()
    lines = transcript.read_bytes().splitlines(keepends=True)
    transcript.write_bytes(
        b"".join(line for line in lines if b"Both files are written." not in line)
    )
    done = one.perdure("update", "task", "Go further.", "--json")
    (mended,) = done.json["attempts"][1:]
    assert (mended["rung"], mended["receipt"]["verdict"]) == ("copy", "native"), mended["receipt"]
    assert "was not what perdure had recorded" in " ".join(mended["receipt"]["reasons"])
    assert "Both files are written." in said(one.rehearsal.last.messages)
    assert done.code == 0, done.err
    assert list(one.agent_home.rglob("*unusable*"))
    one.nothing_survives()
