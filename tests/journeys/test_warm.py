"""Agents that are kept between attempts, with the real Claude Code and Codex: one process, many
tasks, and every guarantee of an attempt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.model.events import (
    AgentKeptWarm,
    AgentLaunched,
    AgentLetGo,
    AnyEvent,
    LeftoversFound,
)
from tests.journeys.stage import Stage, said

SCRIPT = (
    "by history\nrun echo one > one.txt\n---\nsay One.\n---\nrun echo two > two.txt\n---\nsay "
    "Two.\n---\nsay Three.\n---\nsay Four.\n"
)
LINE: dict[str, Any] = {"permissions": "full", "scope": "plan:p/main", "branch": "perdure/p-main"}
MakeStage = Callable[..., Stage]


BEGUN = {"claude": '"subtype":"init"', "codex": '"type": "thread.started"'}
"""Text that the output of each turn has exactly once, at its beginning."""


@pytest.fixture(params=["claude", "codex"])
def agent(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(stage: Stage, **settings: str) -> perdure.Runner:
    """Open perdure in this process, as a plan does."""
    return perdure.open(
        cwd=stage.repo, environ={**stage.environ, "PERDURE_AGENT": stage.agent, **settings}
    )


def told(runner: perdure.Runner, name: str, kind: type[AnyEvent]) -> list[Any]:
    """Return the journal's records of one kind about a run, in order."""
    return [record.event for record in runner.history(name) if isinstance(record.event, kind)]


def kept(runner: perdure.Runner, name: str) -> int:
    """Return the process id of the agent that was kept after this run."""
    pid: int = told(runner, name, AgentKeptWarm)[-1].pid
    return pid


def parent(pid: int) -> int:
    """Return the process id of a process's parent. An agent's parent is its keeper."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (
            b"Z",
            b"X",
        )
    except OSError:
        return False


def goes_on(runner: perdure.Runner, name: str, **fields: Any) -> int:
    """Run one more task of the scope in `LINE`, and check that it continues the conversation
    natively. Return the number of its turn in the agent's process; 1 means a new process."""
    assert runner.run(f"Task {name}.", name=name, **{**LINE, **fields}).state == "succeeded"
    attempts = runner.report(name)["attempts"]
    assert (attempts[-1]["receipt"] or {}).get("verdict") == "native", attempts
    turn: int = told(runner, name, AgentLaunched)[-1].turn
    return turn


def test_one_process_serves_three_tasks(stage: MakeStage) -> None:
    """Three tasks of one scope are three turns of one process. Each has its own output, usage and
    native receipt, and the model gets all earlier messages. No process is left when the program
    ends."""
    one = stage(SCRIPT)
    with opened(one) as runner:
        reports = []
        for number in range(3):
            assert runner.run(f"Task {number}.", name=f"t{number}", **LINE).state == "succeeded"
            reports.append(runner.report(f"t{number}")["attempts"][0])
        launched = [told(runner, f"t{number}", AgentLaunched)[0] for number in range(3)]
        assert len({each.pid for each in launched}) == 1
        assert [each.turn for each in launched] == [1, 2, 3]
        assert [len(told(runner, f"t{number}", AgentKeptWarm)) for number in range(3)] == [1, 1, 1]
        assert one.marked()
    assert [each["receipt"]["verdict"] for each in reports] == ["fresh", "native", "native"]
    assert [each["usage"]["input"] for each in reports] == [200, 200, 100]
    outputs = [(Path(each["directory"]) / "stdout").read_text() for each in reports]
    assert [text.count(BEGUN[one.agent]) for text in outputs] == [1, 1, 1]
    last = said(one.rehearsal.requests[-1].messages)
    assert all(f"user: Task {number}." in last for number in range(3))
    assert "assistant: One." in last
    assert "assistant: Two." in last
    one.nothing_survives()


def test_an_idle_agent_that_is_killed_costs_a_start(stage: MakeStage) -> None:
    """The agent, or its keeper, is killed while the agent is idle. The next task starts a process
    and continues natively."""
    one = stage(SCRIPT)
    with opened(one) as runner:
        runner.run("Task one.", name="one", **LINE)
        os.kill(kept(runner, "one"), signal.SIGKILL)
        one.until(lambda: not one.marked(), "the keeper has seen it")
        assert goes_on(runner, "two") == 1
        os.kill(parent(kept(runner, "two")), signal.SIGKILL)
        assert goes_on(runner, "three") == 1
        assert len(one.conversations()) == 1
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_the_server_below_an_idle_agent_is_killed(stage: MakeStage) -> None:
    """A kept Codex is a server below a bridge. When the server is killed while the agent is idle,
    the bridge ends, and the next task starts a new agent."""
    one = stage(SCRIPT)
    with opened(one) as runner:
        runner.run("Task one.", name="one", **LINE)
        (server,) = [pid for pid in one.marked() if parent(pid) == kept(runner, "one")]
        os.kill(server, signal.SIGKILL)
        one.until(lambda: not one.marked(), "the bridge and the keeper have seen it")
        assert goes_on(runner, "two") == 1


ALIKE = (
    "cwd",
    "approval_policy",
    "approvals_reviewer",
    "permission_profile",
    "sandbox_policy",
    "file_system_sandbox_policy",
    "model",
)


@pytest.mark.parametrize("permissions", ["read", "edit", "full"])
@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_codex_alone_and_kept_is_held_alike(stage: MakeStage, permissions: str) -> None:
    """A thread moves from `codex exec` to the app server and back. Each attempt continues natively
    with the same sandbox, approvals and model, whatever the user's settings would allow. No
    directory is added to those that the user trusts."""
    one = stage(
        "by history\nrun touch one.txt || true\n---\nsay One.\n---\nrun touch two.txt || "
        "true\n---\nsay Two.\n---\nsay Three.\n"
    )
    settings = one.agent_home / "config.toml"
    own = (
        'sandbox_mode = "danger-full-access"\napproval_policy = '
        '"on-request"\nmodel_reasoning_effort = "low"\n'
    )
    settings.write_text(own + settings.read_text())
    before = settings.read_text()
    for name, policy in (("one", "off"), ("two", "plans"), ("three", "off")):
        with opened(one, PERDURE_WARM=policy) as runner:
            run = runner.run(f"Task {name}.", name=name, **{**LINE, "permissions": permissions})
            assert run.state == "succeeded"
            (attempt,) = runner.report(name)["attempts"]
            assert attempt["receipt"]["verdict"] == ("fresh" if name == "one" else "native")
            assert len(told(runner, name, AgentKeptWarm)) == (policy == "plans")
    assert run.workspace is not None
    assert sorted(path.name for path in Path(run.workspace.path).glob("*.txt")) == (
        [] if permissions == "read" else ["one.txt", "two.txt"]
    )
    (rollout,) = one.transcripts()
    turns = [
        json.loads(line)["payload"]
        for line in rollout.read_text().splitlines()
        if '"type":"turn_context"' in line
    ]
    first, second, third = ({name: turn.get(name) for name in (*ALIKE, "effort")} for turn in turns)
    assert first == second == third
    assert (first["approval_policy"], first["effort"]) == ("never", "low")
    assert settings.read_text() == before


TOOLS = """
import json, subprocess, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        result = {"tools": []}
        if asked["method"] == "initialize":
            time.sleep(0.5)
            subprocess.Popen(["sleep", "600"])
            result = {"capabilities": {"tools": {}}, "serverInfo": {"name": "t", "version": "1"}}
            result["protocolVersion"] = asked["params"]["protocolVersion"]
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_the_users_own_tool_servers_belong_to_the_agent(stage: MakeStage) -> None:
    """The user's settings of Codex have an MCP server that starts another process, and one that
    cannot be started. The first one does not count as a leftover of a turn, and is used in the next
    turn as well."""
    one = stage(SCRIPT)
    tools = one.directory / "tools.py"
    tools.write_text(TOOLS)
    with (one.agent_home / "config.toml").open("a") as settings:
        settings.write(f'[mcp_servers.tools]\ncommand = "{sys.executable}"\nargs = ["{tools}"]\n')
        settings.write('[mcp_servers.none]\ncommand = "/nonexistent"\n')
    with opened(one) as runner:
        runner.run("Task one.", name="one", **LINE)
        servers = [
            pid
            for pid in one.at_home()
            if str(tools).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert not told(runner, "one", AgentLetGo)
        assert goes_on(runner, "two") == 2
        assert servers
        assert all(lives(pid) for pid in servers)


def test_an_agent_that_is_killed_in_its_second_turn(stage: MakeStage) -> None:
    """The kept agent is killed in the middle of its next turn. That attempt fails as any other
    would. The next attempt resumes the same conversation, which is complete."""
    one = stage(
        "by history\nsay One.\n---\nrun test -e killed || { touch killed; kill -9 $PPID; "
        "}\n---\nsay Two.\n"
    )
    with opened(one) as runner:
        runner.run("Task one.", name="one", **LINE)
        done = runner.run("Task two.", name="two", **LINE)
        assert (done.state, done.attempt) == ("succeeded", 2)
        first, second = runner.report("two")["attempts"]
        assert (first["outcome"]["kind"], first["outcome"]["signal"]) == ("failed", 9)
        assert second["receipt"]["verdict"] == "native"
        assert [event.turn for event in told(runner, "two", AgentLaunched)] == [2, 1]
        assert len(one.conversations()) == 1
    one.nothing_survives()


def test_the_limits(stage: MakeStage) -> None:
    """A kept agent is ended after its number of turns, over its memory limit, or after it has been
    idle too long. Each time the next task continues natively."""
    one = stage(SCRIPT)
    with opened(one, PERDURE_WARM_TURNS="1") as runner:
        runner.run("Task one.", name="one", **LINE)
        assert "had 1 turns" in told(runner, "one", AgentLetGo)[0].reason
    with opened(one, PERDURE_WARM_MEMORY="1MB") as runner:
        assert goes_on(runner, "two") == 1
        assert "of memory" in told(runner, "two", AgentLetGo)[0].reason
    with opened(one, PERDURE_WARM_IDLE="0") as runner:
        assert goes_on(runner, "three") == 1
        one.until(lambda: not one.marked(), "it has waited too long")
        assert goes_on(runner, "four") == 1


def test_other_flags_are_another_process(stage: MakeStage) -> None:
    """A task with another model does not use the kept process, nor does a task after another
    program's prompt in the conversation. Codex accepts no other program while it has the thread
    open."""
    one = stage(SCRIPT)
    with opened(one) as runner:
        first = runner.run("Task one.", name="one", **LINE)
        assert goes_on(runner, "two", model="another-model") == 1
        assert goes_on(runner, "three", model="another-model") == 2
        session = runner.report("three")["attempts"][0]["session_id"]
        assert first.workspace is not None
        by_hand = one.resume_by_hand(session, "A stranger asks.", Path(first.workspace.path))
        if one.agent == "codex":
            assert "already has an active writer" in by_hand.stderr
            assert goes_on(runner, "four", model="another-model") == 3
            return
        assert by_hand.returncode == 0, by_hand.stderr
        assert goes_on(runner, "four", model="another-model") == 1
        assert "user: A stranger asks." in said(one.rehearsal.requests[-1].messages)


def test_two_programs_take_turns_on_one_line(stage: MakeStage) -> None:
    """An agent that one program keeps is ended by another program's next task in its conversation.
    It must not get another turn, because it has not seen the later part of the conversation."""
    one = stage("by history\nsay One.\n---\nsay Two.\n---\nsay Three.\n---\nsay Four.\n")
    with opened(one) as here, opened(one) as there:
        here.run("Task one.", name="one", **LINE)
        assert goes_on(there, "two") == 1
        theirs = kept(there, "two")
        assert goes_on(here, "three") == 1
        assert not lives(theirs)
        assert goes_on(there, "four") == 1
        assert "user: Task three." in said(one.rehearsal.requests[-1].messages)
        # `here` keeps no agent any more. Its end must not affect the agent that `there` keeps.
        here.close()
        assert lives(kept(there, "four"))
        assert len(one.conversations()) == 1
    one.nothing_survives()


def test_what_a_turn_leaves_behind(stage: MakeStage) -> None:
    """A shell's background process is ended with the attempt and reported, and the agent is kept.
    No process of a turn continues to run."""
    one = stage(
        "by history\nrun true; sleep 600 > /dev/null 2>&1 & echo $! > pid\n---\nsay One.\n---\nsay "
        "Two.\n"
    )
    with opened(one) as runner:
        run = runner.run("Task one.", name="one", **LINE)
        assert run.workspace is not None
        assert not lives(int((Path(run.workspace.path) / "pid").read_text()))
        found = [each.processes for each in told(runner, "one", LeftoversFound)]
        left = [(each.command, each.became) for processes in found for each in processes]
        # Codex itself ends the process at the end of the turn.
        assert left == ([] if one.agent == "codex" else [("sleep 600", "ended")])
        assert goes_on(runner, "two") == 2


@pytest.mark.parametrize("agent", ["claude"], indirect=True)
def test_a_kept_agent_that_leaves_something_running_is_ended(stage: MakeStage) -> None:
    """A kept Claude Code leaves a background command and a detached one that ignores SIGTERM. Both
    are ended with the agent and named, and the next task continues the same conversation. A run
    with `--on-leftover keep` gets another agent."""
    away = "(setsid sh -c 'trap \"\" TERM; exec sleep 602' >/dev/null 2>&1 &) ; echo started"
    background = {"command": "sleep 601", "description": "serve", "run_in_background": True}
    one = stage(
        f"run {away}\n---\ncall Bash {json.dumps(background)}\n---\nsay One.\n---\n"
        "say Two.\n---\nsay Three.\n"
    )
    with opened(one) as runner:
        runner.run("Task one.", name="one", **LINE)
        named = {
            each.command: each.became
            for event in told(runner, "one", LeftoversFound)
            for each in event.processes
        }
        assert set(named.values()) == {"ended"}
        assert {"sleep 601", "sleep 602"} <= set(named)
        assert told(runner, "one", AgentLetGo)
        one.nothing_survives()
        assert goes_on(runner, "two") == 1
        assert goes_on(runner, "three", on_leftover="keep") == 1
        assert not told(runner, "three", AgentKeptWarm)


def test_other_verbs_while_one_waits(stage: MakeStage) -> None:
    """`open`, `fork`, `restore` and `rm` by another perdure find the workdir unlocked, because the
    kept agent that waits in it is ended first."""
    one = stage(SCRIPT)
    with opened(one) as runner:
        runner.run("Task one.", name="one", **LINE)
        for words, name in (
            (("open", "one"), "two"),
            (("fork", "one", "Else.", "--as", "other", "--detach"), "three"),
            (("restore", "one"), "four"),
        ):
            pid = kept(runner, {"two": "one", "three": "two", "four": "three"}[name])
            assert lives(pid)
            done = one.perdure(*words)
            assert done.code == 0, (words, done.err)
            assert not lives(pid), words
            if words[0] == "open":
                assert one.perdure("take-back", "one").code == 0
            assert goes_on(runner, name) == 1
        runner.run(
            "Task alone.",
            name="alone",
            **{**LINE, "scope": "plan:p/alone", "branch": "perdure/p-alone"},
        )
        alone = kept(runner, "alone")
        assert one.perdure("rm", "alone", "--force").code == 0
        assert not lives(alone)
        assert goes_on(runner, "five") == 2


DRIVER = """
import sys, perdure
with perdure.open() as runner:
    for number in range(2):
        line = dict(agent=sys.argv[1], permissions="full", scope="plan:p/main", branch="perdure/p-main")
        run = runner.run(f"Task {number}.", name=f"t{number}", **line)
        print(run.state, flush=True)
    sys.stdin.read()
"""


def program(stage: Stage) -> Any:
    """Start a program with two tasks, which then waits until it is told to end."""
    started = subprocess.Popen(
        [sys.executable, "-c", DRIVER, stage.agent],
        cwd=stage.repo,
        env=stage.environ,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stage.running.append(started)
    return started


def test_a_supervisor_that_is_killed_while_its_agent_waits(stage: MakeStage) -> None:
    """When the perdure that kept an idle agent is killed, nothing is left of the agent, and another
    perdure continues natively."""
    one = stage(SCRIPT)
    started = program(one)
    assert [started.stdout.readline() for _ in range(2)] == ["succeeded\n", "succeeded\n"]
    assert one.marked()
    started.kill()
    one.until(lambda: not one.marked(), "the agent is gone")
    with opened(one) as runner:
        assert goes_on(runner, "three") == 1
        assert len(one.conversations()) == 1


def test_a_supervisor_that_is_killed_in_the_second_turn(stage: MakeStage) -> None:
    """The agent finishes its turn after its perdure was killed, and then ends. Another perdure
    takes the same attempt over. It succeeds with a native receipt."""
    one = stage(
        "by history\nsay One.\n---\nrun while ! test -e go; do sleep 0.05; done\n---\nsay Two.\n"
    )
    started = program(one)
    assert started.stdout.readline() == "succeeded\n"
    one.until(
        lambda: (
            one.rehearsal.requests[-1:] and "Task 1." in said(one.rehearsal.requests[-1].messages)
        ),
        "the second turn",
    )
    started.kill()
    started.wait()
    (workdir,) = one.until(
        lambda: list(one.home.glob(".local/share/perdure/.perdure/work/*/greet.py")), "the workdir"
    )
    (workdir.parent / "go").touch()
    done = one.perdure("retry", "t1", "--json")
    assert done.code == 0, done.err
    (attempt,) = done.json["attempts"]
    assert (
        attempt["outcome"]["kind"],
        attempt["outcome"]["code"],
        attempt["receipt"]["verdict"],
    ) == ("succeeded", 0, "native")
    one.nothing_survives()


def test_a_stop_in_the_second_turn(stage: MakeStage) -> None:
    """`stop` ends a kept agent during its turn, and the attempt says that it was stopped."""
    one = stage(
        "by history\nsay One.\n---\nrun while ! test -e go; do sleep 0.05; done\n---\nsay Two.\n"
    )
    started = program(one)
    assert started.stdout.readline() == "succeeded\n"
    one.until(
        lambda: (
            one.rehearsal.requests[-1:] and "Task 1." in said(one.rehearsal.requests[-1].messages)
        ),
        "the second turn",
    )
    assert one.perdure("stop", "t1").code == 0
    assert started.stdout.readline() == "cancelled\n"
    one.nothing_survives()
    started.kill()


def test_the_setting_is_off(stage: MakeStage) -> None:
    """With the setting `off`, and by default for runs without a plan, each attempt has a process
    that ends with the attempt."""
    one = stage(SCRIPT)
    with opened(one, PERDURE_WARM="off") as runner:
        runner.run("Task one.", name="one", **LINE)
        assert not one.marked()
        assert not told(runner, "one", AgentKeptWarm)
    with opened(one) as runner:
        runner.run("Task alone.", name="alone", permissions="full")
        assert not told(runner, "alone", AgentKeptWarm)
