"""The base branch of the work advances: the agent gets one message with the new commits, and can
merge them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.forge.dispatch import Dispatcher
from perdure.model import TaskSpec
from perdure.model.forge.deliveries import Intent, IntentKind
from tests.dispatching.office import Office, intent

ASSIGNED = intent(IntentKind.ASSIGNED, whom=("dev-bot",))


def comment(text: str) -> Intent:
    return intent(IntentKind.COMMENTED, text=text)


@pytest.mark.parametrize("backend", ["worktree", "isolated"])
def test_told_once(make: Callable[..., Office], backend: str) -> None:
    """The first update after a change names the new commits and the new position of the base. The
    next update names them only if there are more. The agent can merge the named commits."""
    office = make()
    yard = office.ground.yard
    office.dispatcher = Dispatcher(
        office.engine,
        office.rules,
        TaskSpec(prompt="", backend=backend, base="main"),
        office.said.append,
    )
    office.told(ASSIGNED)
    claim = office.claim()
    assert claim.run.workspace is not None
    office.ground.prepare(claim.run.workspace)
    office.end(claim)
    office.told(comment("one"))
    for number in (1, 2):
        yard.git("commit", "-q", "--allow-empty", "-m", f"on main {number}")
    office.told(comment("two"))
    office.told(comment("three"))
    yard.git("commit", "-q", "--allow-empty", "-m", "on main 3")
    office.told(comment("four"))
    one, two, three, four = office.prompts()[1:]
    assert "moved on" not in one and "moved on" not in three
    assert "2 commit(s) came to main" in two and "on main 2\non main 1" in two
    assert "1 commit(s) came to main" in four and "on main 1" not in four
    tip = yard.git("rev-parse", "main")
    assert tip in four
    yard.git("merge", "-q", "--ff-only", tip, cwd=Path(claim.run.workspace.path))


def test_told_with_the_update(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update, and the record that the agent knows the new base, are stored in one transaction.
    After a kill, the next update does not repeat the commits."""
    yard = office.ground.yard
    office.dispatcher = Dispatcher(
        office.engine, office.rules, TaskSpec(prompt="", base="main"), office.said.append
    )
    office.told(ASSIGNED)
    claim = office.claim()
    assert claim.run.workspace is not None
    office.ground.prepare(claim.run.workspace)
    office.end(claim)
    yard.git("commit", "-q", "--allow-empty", "-m", "on main")
    update = office.engine.store.update

    class Killed(BaseException): ...

    def killed(*words: Any, **more: Any) -> None:
        update(*words, **more)
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(office.engine.store, "update", killed)
        office.told(comment("one"))
    office.told(comment("two"))
    first, second = office.prompts()[1:]
    assert "on main" in first and "moved on" not in second


def test_a_base_that_is_gone(office: Office) -> None:
    """If the base branch is gone, the update says nothing about it."""
    office.ground.yard.git("branch", "side")
    office.dispatcher = Dispatcher(
        office.engine,
        office.rules,
        TaskSpec(prompt="", backend="isolated", base="side"),
        office.said.append,
    )
    office.told(ASSIGNED)
    claim = office.claim()
    assert claim.run.workspace is not None
    office.ground.prepare(claim.run.workspace)
    office.end(claim)
    office.ground.yard.git("branch", "-D", "side")
    office.told(comment("one"))
    assert "one" in office.prompts()[1] and "moved on" not in office.prompts()[1]
