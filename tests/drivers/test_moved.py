"""An agent's home at another path: a new mount point, a move, a copy, a link. Nothing in it is
damaged, so its conversations continue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.agents.codex import driver
from perdure.model import Continuation, Start
from perdure.testing.drivers.bench import resume
from tests.drivers.moving import WAYS, goes_on_elsewhere
from tests.drivers.test_driver_real import Make, benches

SCRIPT = "\n---\n".join(f"say Answer {number}." for number in range(8))


@pytest.fixture(params=["claude", "codex"])
def bench(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes benches for each agent that starts fast."""
    yield from benches(request.param)


@pytest.fixture
def codex() -> Iterator[Make]:
    """Makes benches for Codex."""
    yield from benches("codex")


@pytest.mark.parametrize("way", WAYS)
def test_a_conversation_goes_on_at_another_path(bench: Make, way: str) -> None:
    """The conversation continues by its id in the new place, with everything that was said. After a
    copy, nothing is written to the old place."""
    goes_on_elsewhere(bench(SCRIPT), way)


def test_a_home_where_it_was_keeps_its_index(codex: Make) -> None:
    """perdure makes no separate index for the thread if the home's own index is correct, or if the
    home has no index."""
    stage = codex(SCRIPT)
    session = stage.run("hello one").session_id
    assert driver.separate_index(stage.home, session) is None
    assert not any(
        driver.SETTING in word
        for word in stage.driver.command(stage.launch("x", resume(session))).argv
    )
    for path in stage.home.glob("state_*.sqlite*"):
        path.unlink()
    assert driver.separate_index(stage.home, session) is None


def test_a_moved_home_can_be_gone_on_in_by_hand_and_forked(codex: Make) -> None:
    """The command that a person gets to continue the thread uses the repaired index, too. A fork of
    a thread in a moved home has the whole history."""
    stage = codex(SCRIPT)
    session = stage.run("hello one").session_id
    new = stage.home.rename(stage.home.with_name("elsewhere"))
    moved = type(stage)(
        driver=stage.driver,
        environ={**stage.environ, "CODEX_HOME": str(new)},
        rehearsal=stage.rehearsal,
        cwd=stage.cwd,
    )
    assert stage.driver.interactive_command(moved.launch("x", resume(session))).env[
        "CODEX_SQLITE_HOME"
    ] == str(Path(new, "perdure-index"))
    forked = moved.run("another way", Continuation(kind=Start.FORK, session_id=session))
    assert forked.outcome.ok, forked.outcome
    assert "Answer 0." in moved.reached_the_model()
