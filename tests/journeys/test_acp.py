"""The main stories of one task with agents that are driven over ACP: the agent's process is a
bridge, which runs the agent.

The stories are those of `test_one_task`; only the name of the agent differs.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from itertools import pairwise
from pathlib import Path

import pytest

from perdure.agents.rehearsal import Rehearsal
from tests.journeys import test_one_task as stories
from tests.journeys.stage import Stage, native

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.journey


class AcpStage(Stage):
    """A stage on which perdure is told to drive the same agent over ACP."""

    def start(self, *words: str, prompt: str | None = None) -> subprocess.Popen[str]:
        named = [
            f"acp-{word}" if before == "--agent" else word
            for before, word in pairwise(("", *words))
        ]
        return super().start(*named, prompt=prompt)


@pytest.fixture(params=["codex", "opencode"])
def stage(request: pytest.FixtureRequest) -> Iterator[MakeStage]:
    """Make a stage for a script. At the end stop its processes and remove it."""
    made: list[Stage] = []
    directory = Path(tempfile.mkdtemp(prefix="pja"))
    commands = {}
    if request.param == "codex":
        adapter = native("codex").parents[5] / "@agentclientprotocol/codex-acp/dist/index.js"
        commands = {"PERDURE_ACP_CODEX": f"env CODEX_PATH={native('codex')} node {adapter}"}

    def make(script: str) -> Stage:
        made.append(AcpStage(directory, request.param, Rehearsal(script).start(), extra=commands))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(stories.test_killed_in_a_reply, id="killed-in-a-reply"),
        pytest.param(stories.test_killed_in_a_tool, id="killed-in-a-tool"),
        pytest.param(stories.test_the_supervisor_is_killed_and_the_agent_adopted, id="adopted"),
        pytest.param(stories.test_everything_is_killed_at_once, id="machine-lost"),
        pytest.param(
            partial(stories.test_the_session_file_is_deleted, policy="disclose"),
            id="conversation-lost-copy-there",
        ),
        pytest.param(stories.test_the_conversation_is_lost_and_disclosed, id="conversation-lost"),
        pytest.param(
            partial(stories.test_killed_before_its_first_word, agent=""),
            id="killed-before-its-first-word",
        ),
    ],
)
def test_a_story(stage: MakeStage, tmp_path: Path, story: Callable[..., None]) -> None:
    """The conversation continues natively, or the receipt says why not. Neither the agent behind
    the bridge nor its tools survive."""
    given = {"tmp_path": tmp_path} if "tmp_path" in signature(story).parameters else {}
    story(stage=stage, **given)


def test_an_update_carries_only_what_is_new(stage: MakeStage) -> None:
    """New instructions resume the same conversation. The new prompt has only them, and nothing that
    was said before."""
    one = stage(stories.TWO_TURNS + "---\nrun echo three > three.txt\n---\nsay Three.\n")
    assert one.perdure(*stories.run_to(one), stories.PROMPT).code == 0
    done = one.perdure("update", "task", "Now write three.txt.", "--json")
    assert done.code == 0, done.err
    stories.went_on_natively(one, done.json)
    first, second = one.rehearsal.prompts()
    assert first == stories.PROMPT
    assert "Now write three.txt." in second
    assert "quercus" not in second
    assert [attempt["usage"]["input"] for attempt in done.json["attempts"]] == (
        [300, 200] if one.agent == "codex" else [100, 100]
    )
    one.nothing_survives()


def test_a_command_that_is_not_there_is_told_before_anything_starts(
    stage: MakeStage, tmp_path: Path
) -> None:
    """If an agent's command does not exist, the result is one clear sentence, exit code 5, and no
    attempt."""
    one = stage("say Never.")
    one.environ[f"PERDURE_ACP_{one.agent.upper()}"] = str(tmp_path / "nothing")
    done = one.perdure(*stories.run_to(one), stories.PROMPT)
    assert done.code == 5, done.err
    assert f"acp-{one.agent} cannot be started" in done.err
