"""The real agent CLIs with the rehearsal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal

from .conftest import Agent

pytestmark = pytest.mark.parametrize("name", ["claude", "codex"])
Make = Callable[[str], Agent]


def wait_until(met: Callable[[], bool]) -> None:
    while not met():
        time.sleep(0.01)


def test_two_turns_with_a_tool_call_and_a_resume(name: str, an_agent: Make):
    """The CLI runs the scripted command for real, and after a resume the whole history reaches the
    model."""
    agent = an_agent(name)
    with Rehearsal(
        "say I look.\nrun echo proof > made.txt; echo out\n---\nsay first answer\n---\nsay second "
        "answer"
    ) as rehearsal:
        first = agent.run(rehearsal, "hello one")
        assert (first.code, (agent.cwd / "made.txt").read_text()) == (0, "proof\n")
        second = agent.run(rehearsal, "hello two", resume=first.session)
        assert (second.code, second.session) == (0, first.session)
        assert rehearsal.prompts() == ["hello one", "hello two"]
        *said, result, answer, prompt = [
            (message.role, message.text.strip()) for message in rehearsal.last.messages
        ]
        assert said == [
            ("user", "hello one"),
            ("assistant", "I look."),
            ("tool_call", "echo proof > made.txt; echo out"),
        ]
        assert result[0] == "tool_result" and result[1].endswith("out")
        assert [answer, prompt] == [("assistant", "first answer"), ("user", "hello two")]
        assert [request.session for request in rehearsal.requests] == [first.session] * 3
        assert [request.reply for request in rehearsal.requests] == [0, 1, 2]


def test_usage_arrives_as_scripted(name: str, an_agent: Make):
    """The CLI reports exactly the tokens that the script names."""
    agent = an_agent(name)
    with Rehearsal("usage in=1234 out=56 cached=78\nsay a") as rehearsal:
        usage = agent.run(rehearsal, "hello").result["usage"]
    cached = "cache_read_input_tokens" if name == "claude" else "cached_input_tokens"
    assert (usage["input_tokens"], usage["output_tokens"], usage[cached]) == (1234, 56, 78)


def test_a_failing_service_is_asked_again(name: str, an_agent: Make):
    """The CLI treats the scripted error as an error of its service. It retries by itself, and gets
    the rest of the reply."""
    agent = an_agent(name)
    with Rehearsal(f"fail {529 if name == 'claude' else 500}\nsay recovered") as rehearsal:
        ended = agent.run(rehearsal, "hello", retries=1)
        assert ended.code == 0
        assert [request.answer for request in rehearsal.requests] == ["fail", "reply"]


def test_a_usage_limit_ends_the_run(name: str, an_agent: Make):
    """The CLI treats the scripted limit as a limit of its service. It fails after one request and
    names the limit."""
    agent = an_agent(name)
    with Rehearsal("limit 3600\nsay after the limit") as rehearsal:
        now = time.time()
        ended = agent.run(
            rehearsal, "hello", **({"subscription": True} if name == "claude" else {})
        )
        assert (ended.code, len(rehearsal.requests)) == (1, 1)
    if name == "claude":
        (told,) = [
            line["rate_limit_info"] for line in ended.lines if line["type"] == "rate_limit_event"
        ]
        assert (ended.result["api_error_status"], ended.result["is_error"]) == (429, True)
        assert told["resetsAt"] == pytest.approx(now + 3600, abs=60)
    else:
        assert "hit your usage limit" in ended.result["error"]["message"]


def test_a_cut_stream_is_seen_as_such(name: str, an_agent: Make):
    """The CLI notices that the connection broke in the middle of a stream, and repeats the
    request."""
    agent = an_agent(name)
    with Rehearsal("say half\ncut\n---\nsay whole") as rehearsal:
        assert agent.run(rehearsal, "hello", retries=1).code == 0
        assert [request.reply for request in rehearsal.requests] == [0, 1]


def test_killed_in_a_tool_the_script_goes_on_where_the_conversation_stands(
    name: str, an_agent: Make
):
    """With `by history`, after SIGKILL in the command and a resume, the same reply is sent again,
    then the next one."""
    agent = an_agent(name)
    script = (
        "by history\nrun touch begun; while [ ! -e go ]; do sleep 0.05; done; echo over\n---\nsay "
        "all done"
    )
    with Rehearsal(script) as rehearsal:
        process = agent.start(rehearsal, "hello")
        wait_until((agent.cwd / "begun").exists)
        wait_until(lambda: "touch begun" in kept(agent))
        session = rehearsal.wait_for(1).session
        process.kill()
        process.wait()
        (agent.cwd / "go").touch()
        ended = agent.run(rehearsal, "go on", resume=session)
        assert ended.code == 0
        assert [request.reply for request in rehearsal.requests] == [0, 0, 1]
        assert rehearsal.prompts() == ["hello", "go on"]


def test_killed_in_a_reply_the_reply_is_given_again(name: str, an_agent: Make):
    """A hang leaves the CLI in the middle of a reply. After the kill and a resume the reply is sent
    completely."""
    agent = an_agent(name)
    with Rehearsal("by history\nsay part one\nhang\nsay part two") as rehearsal:
        process = agent.start(rehearsal, "hello")
        session = rehearsal.wait_for(1).session
        wait_until(lambda: "hello" in kept(agent))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ended = agent.run(rehearsal, "go on", resume=session)
        assert ended.code == 0
        assert [request.reply for request in rehearsal.requests] == [0, 0]
        assert rehearsal.prompts() == ["hello", "go on"]


def kept(agent: Agent) -> str:
    """Return all conversations that the agent has on disk."""
    home = agent.scratch / "home" / agent.name
    # Unlike rglob, walk accepts that directories disappear, such as the locks of Claude Code.
    files = [Path(folder, name) for folder, _, names in os.walk(home) for name in names]
    return "".join(path.read_text() for path in files if path.suffix == ".jsonl")
