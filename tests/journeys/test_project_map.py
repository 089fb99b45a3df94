"""The project map with real agents: the part of it that reaches the model, as the rehearsal
receives it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.drivers import acp_proxy
from tests.journeys.stage import Stage, native

pytestmark = pytest.mark.journey

ORDERS = (
    r"run printf 'class Order:\n    id: str\n\n\ndef load(path: str) -> Order: ...\n' > orders.py"
)
DECLARED = "  class Order\n    id: str\n  def load(path: str) -> Order\n"
FIRST, SECOND = "Write orders.py: reading orders.", "Write a report of orders."
MakeStage = Callable[[str], Stage]


@pytest.fixture
def stage() -> Iterator[MakeStage]:
    """Make a stage with Codex. It is also available over ACP, as an unknown agent that keeps no
    conversation."""
    made: list[Stage] = []
    directory = Path(tempfile.mkdtemp(prefix="pjm"))

    def make(script: str) -> Stage:
        adapter = native("codex").parents[5] / "@agentclientprotocol/codex-acp/dist/index.js"
        proxy = f"{sys.executable} {acp_proxy.__file__} unable"
        mine = {"PERDURE_ACP_MINE": f"{proxy} env CODEX_PATH={native('codex')} node {adapter}"}
        made.append(Stage(directory, "codex", Rehearsal(script).start(), extra=mine))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def last_prompt(one: Stage) -> str:
    return one.rehearsal.prompts()[-1]


def test_an_agent_without_sessions_is_told_what_the_files_hold(stage: MakeStage) -> None:
    """Each task begins a new conversation, and its prompt lists what the earlier task made. An
    update gets a brief as well, and its receipt says `rebuilt`; with the policy `strict` it is
    refused."""
    one = stage(f"{ORDERS}\n---\nsay Written.\n---\nsay Reported.\n---\nsay Again.\n")
    mine = [
        "--agent",
        "acp-mine",
        "--branch",
        "work",
        "--env",
        "CODEX_HOME",
        "--env",
        "OPENAI_API_KEY",
        "--permissions",
        "full",
    ]
    first = one.perdure("run", *mine, "--name", "orders", "--json", FIRST)
    assert first.code == 0, first.err
    assert first.json["attempts"][0]["map"]["files"] == 1
    second = one.perdure(
        "run", *mine, "--name", "report", "--label", "task=reporting", "--json", SECOND
    )
    assert second.code == 0, second.err
    assert one.rehearsal.prompts() == [last_prompt(one)]
    assert last_prompt(one).startswith(SECOND + "\n\n<project-map>\n")
    assert f"orders.py (made by task orders):\n{DECLARED}" in last_prompt(one)
    told = second.json["attempts"][0]
    assert (told["continuation"], told["receipt"]["verdict"], told["map"]["full"]) == (
        "fresh",
        "fresh",
        2,
    )
    again = one.perdure("update", "report", "With sums.", "--json")
    assert again.code == 0, again.err
    assert (
        again.json["attempts"][1]["continuation"],
        again.json["attempts"][1]["receipt"]["verdict"],
    ) == ("rebuild", "rebuilt")
    for words in (SECOND, "With sums.", "Reported.", DECLARED):
        assert words in last_prompt(one)
    asked = len(one.rehearsal.requests)
    strict = one.perdure(
        "run", *mine, "--name", "strict", "--continuity", "strict", "--json", SECOND
    )
    assert strict.code == 0, strict.err
    assert one.perdure("update", "strict", "More.", "--json").code == 3
    assert len(one.rehearsal.requests) == asked + 1
    one.nothing_survives()


def test_a_map_where_it_was_asked_for_and_where_a_conversation_was_lost(stage: MakeStage) -> None:
    """By default a prompt has no project map. With `first` a new conversation gets the map, and a
    resumed one does not. A new conversation that replaces a lost one gets the map by default."""
    one = stage(
        f"{ORDERS}\n---\nsay Written.\n---\nsay Reported.\n---\nsay More.\n---\nsay Anew.\n"
    )
    plain = one.perdure(
        "run", "--agent", "codex", "--branch", "work", "--name", "orders", "--json", FIRST
    )
    assert plain.code == 0, plain.err
    assert last_prompt(one) == FIRST
    assert plain.json["attempts"][0]["map"] is None
    asked = ["--branch", "work", "--map", "first"]
    assert one.perdure("run", "--agent", "codex", *asked, "--name", "report", SECOND).code == 0
    assert f"orders.py (made by task orders):\n{DECLARED}" in last_prompt(one)
    assert one.perdure("update", "report", "More.").code == 0
    assert "<project-map>" not in last_prompt(one)
    for path in (*one.transcripts(), *one.copies()):
        path.unlink()
    lost = one.perdure("update", "orders", "Anew.", "--json")
    assert lost.code == 0, lost.err
    assert lost.json["attempts"][1]["receipt"]["verdict"] == "rebuilt"
    assert f"orders.py (made by task orders):\n{DECLARED}" in last_prompt(
        one
    ) and "was worked on before" in last_prompt(one)
    assert "the prompt holds a project map" in one.perdure("logs", "orders").out
    shown = one.perdure("map", "orders", "--for", "load", "--json").json
    assert shown["shown"][0] == "orders.py" and DECLARED in shown["text"]
    here = one.perdure("map")
    assert "greet.py:\n  def greet(name)\n" in here.out and "orders.py" not in here.out
