"""Real agents under the name `acp-mine`, of which perdure knows only that they speak ACP: what a
receipt says about their conversations."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.drivers import acp_proxy
from tests.journeys.stage import Stage, native, said

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey

TALK = (
    "by history\nrun echo one > one.txt\n---\nsay The word is plum.\n---\nsay Plum it "
    "is.\n---\nsay Plum, still.\n"
)
FIRST = "Write one.txt. The magic word is quercus."
PREFIXES = {"codex": ("CODEX_", "OPENAI_"), "opencode": ("OPENCODE_", "XDG_")}
"""Prefixes of the variables that connect the agent to the rehearsal."""


@pytest.fixture(params=["codex", "opencode"])
def agent(request: pytest.FixtureRequest) -> str:
    """Return the real agent behind the name."""
    return str(request.param)


@pytest.fixture
def stage(agent: str) -> Iterator[MakeStage]:
    """Make a stage on which the agent is `acp-mine`, unchanged or changed by the proxy. Everything
    is ended and removed afterwards."""
    made: list[Stage] = []
    directory = Path(tempfile.mkdtemp(prefix="pjm"))

    def make(script: str, scene: str = "honest") -> Stage:
        commands = {
            "codex": f"env CODEX_PATH={native('codex')} node {adapter()}",
            "opencode": f"{native('opencode')} acp",
        }
        mine = f"{sys.executable} {acp_proxy.__file__} {scene} {commands[agent]}"
        made.append(
            Stage(directory, agent, Rehearsal(script).start(), extra={"PERDURE_ACP_MINE": mine})
        )
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def adapter() -> Path:
    return native("codex").parents[5] / "@agentclientprotocol/codex-acp/dist/index.js"


def words(one: Stage, *more: str) -> list[str]:
    names = [name for name in one.environ if name.startswith(PREFIXES[one.agent])]
    environ = [word for name in names for word in ("--env", name)]
    return [
        "run",
        "--name",
        "task",
        "--agent",
        "acp-mine",
        "--permissions",
        "full",
        "--json",
        *environ,
        *more,
    ]


@pytest.mark.parametrize(
    ("scene", "verdict", "held"), [("honest", "replayed", 3), ("resumes", "claimed", None)]
)
def test_a_conversation_goes_on(
    stage: MakeStage, scene: str, verdict: str, held: int | None
) -> None:
    """A loaded conversation is compared with the journal. For a resumed one there is only the
    agent's claim. In both cases the model gets the whole conversation."""
    one = stage(TALK, scene)
    first = one.perdure(*words(one), FIRST)
    assert first.code == 0, first.err
    done = one.perdure("update", "task", "Which word was it?", "--json")
    assert done.code == 0, done.err
    before, last = done.json["attempts"]
    assert (before["receipt"]["verdict"], last["continuation"], last["receipt"]["verdict"]) == (
        "fresh",
        "resume",
        verdict,
    )
    assert last["session_id"] == before["session_id"] != ""
    assert last["receipt"]["evidence"]["replayed"] == held
    shown = said(one.rehearsal.last.messages)
    assert "quercus" in shown and "The word is plum." in shown
    assert "quercus" not in one.rehearsal.prompts()[-1]
    assert f"receipt {verdict}" in one.perdure("show", "task").out + one.perdure("why", "task").out
    one.nothing_survives()


def test_killed_in_a_reply(stage: MakeStage, tmp_path: Path) -> None:
    """After a SIGKILL in a reply, the next attempt loads the conversation. It is not known whether
    the interrupted turn is complete in it."""
    one = stage(TALK.replace("say The word", f"hold {tmp_path / 'go'}\nsay The word"))
    started = one.start(*words(one, "--attempts", "1"), FIRST)
    one.rehearsal.wait_for(2)
    one.until(
        lambda: b"one.txt" in (one.attempt_directory(1) / "stdout").read_bytes(),
        "the command is told",
    )
    os.kill(one.agent_pid(), signal.SIGKILL)
    assert one.finish(started).code == 1
    (tmp_path / "go").touch()
    done = one.perdure("retry", "task", "--json")
    assert done.code == 0, done.err
    assert done.json["attempts"][-1]["receipt"]["verdict"] == "replayed", done.json["attempts"]
    assert "quercus" in said(one.rehearsal.last.messages)
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
@pytest.mark.parametrize(
    ("policy", "code", "kind"), [("disclose", 0, "rebuilt"), ("strict", 3, "")]
)
def test_an_agent_that_lies(stage: MakeStage, policy: str, code: int, kind: str) -> None:
    """If an agent claims that it loaded the conversation but replays another one, it gets no prompt
    there, and the policy decides what follows."""
    one = stage(TALK, "lies")
    assert one.perdure(*words(one, "--continuity", policy), FIRST).code == 0
    asked = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Which word was it?", "--json")
    assert done.code == code, done.err
    lied = done.json["attempts"][1]
    assert (lied["outcome"]["kind"], lied["receipt"]) == ("session_broken", None)
    assert (
        "its replay lacks 1 prompt(s), 1 answer(s), 1 tool call(s) of it"
        in lied["outcome"]["detail"]
    )
    if policy == "strict":
        assert len(one.rehearsal.requests) == asked
        return
    last = done.json["attempts"][2]
    assert (last["continuation"], last["receipt"]["verdict"], last["lost_session_id"]) == (
        "rebuild",
        kind,
        lied["session_id"],
    )
    assert "quercus" in one.rehearsal.prompts()[-1]
    one.nothing_survives()


@pytest.mark.parametrize("agent", ["codex"], indirect=True)
def test_a_conversation_that_is_gone(stage: MakeStage) -> None:
    """codex-acp 2.6.0 reports that it loaded a conversation whose file is gone. The empty replay
    shows that it did not, and a new conversation begins with a brief."""
    one = stage(TALK)
    assert one.perdure(*words(one), FIRST).code == 0
    for path in one.transcripts():
        path.unlink()
    done = one.perdure("update", "task", "Which word was it?", "--json")
    assert done.code == 0, done.err
    assert [attempt["outcome"]["kind"] for attempt in done.json["attempts"]] == [
        "succeeded",
        "session_broken",
        "succeeded",
    ]
    assert done.json["attempts"][2]["receipt"]["verdict"] == "rebuilt"
    one.nothing_survives()


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["codex"], indirect=True)
@pytest.mark.parametrize(("policy", "code"), [("disclose", 0), ("strict", 3)])
def test_an_agent_that_refuses_to_load(stage: MakeStage, policy: str, code: int) -> None:
    """An agent that refuses to load is asked twice, because the cause is unknown. Then the policy
    decides; the second refusal uses up no attempt. After a strict refusal a person's retry asks
    again."""
    one = stage(TALK)
    assert one.perdure(*words(one, "--continuity", policy), FIRST).code == 0
    honest = one.environ["PERDURE_ACP_MINE"]
    one.environ["PERDURE_ACP_MINE"] = honest.replace(" honest ", " refuses ")
    asked = len(one.rehearsal.requests)
    done = one.perdure("update", "task", "Which word was it?", "--json")
    assert done.code == code, done.err
    first, *refused, last = done.json["attempts"]
    assert [each["outcome"]["kind"] for each in refused] == ["failed", "session_broken"]
    assert all("The shelf is out of order." in each["outcome"]["detail"] for each in refused)
    if policy == "disclose":
        assert (last["continuation"], last["receipt"]["verdict"]) == ("rebuild", "rebuilt"), last
        assert last["lost_session_id"] == first["session_id"]
        return
    assert len(one.rehearsal.requests) == asked
    assert (last["outcome"]["kind"], last["continuation"]) == ("continuity_lost", None), last
    assert "the agent did not accept it as it was" in last["outcome"]["detail"]
    one.environ["PERDURE_ACP_MINE"] = honest
    again = one.perdure("retry", "task", "--json")
    assert again.code == 0, again.err
    assert again.json["attempts"][-1]["receipt"]["verdict"] == "replayed"
    one.nothing_survives()
