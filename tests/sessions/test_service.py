"""The session service with a real store: what each verb changes and refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
from perdure.errors import AgentMissing, Conflict, NotFound, UsageError
from perdure.library import Runner
from perdure.model import SessionState, TaskSpec
from tests.conftest import Scratch

SCOPE = "plan:shop/main"


@pytest.fixture
def runner(scratch: Scratch, repository: Path, agents: dict[str, Path]) -> Iterator[Runner]:
    """Open the library with its own store, whose sessions last an hour."""
    own = {"PERDURE_CLAUDE": str(agents["claude"]), "PERDURE_SESSION_LIFETIME": "1h"}
    with perdure.open(cwd=repository, environ={**scratch.environ, **own}) as runner:
        yield runner


def test_one_session_from_its_beginning_to_its_end(runner: Runner) -> None:
    """A session is created with a lifetime, named by the agent's first reply, used, extended and
    closed. Each verb returns the record as it is stored, and the lineage keeps the earlier ones."""
    made = runner.sessions.create("codex", perdure.plan_scope("shop"))
    assert made.key.scope == SCOPE and made.state is SessionState.PINNED
    assert runner.sessions.get("codex", SCOPE) == made and made.expires == made.updated + 3_600_000
    named = runner.sessions.update("codex", SCOPE, "0199-native")
    assert (named.id, named.expires - named.updated) == ("0199-native", 3_600_000)
    assert runner.sessions.update("codex", SCOPE, "0199-native") == named
    assert runner.sessions.count_task("codex", SCOPE).tasks == 1
    assert runner.sessions.count_task("codex", SCOPE).tasks == 2
    longer = runner.sessions.extend("codex", SCOPE, 7200)
    assert longer.expires == longer.updated + 7_200_000 and longer.tasks == 2
    for_ever = runner.sessions.extend("codex", SCOPE, 0)
    assert for_ever.expires == 0
    closed = runner.sessions.close("codex", SCOPE, "the plan is done")
    assert (closed.state, closed.cause) == (SessionState.RETIRED, "the plan is done")
    assert runner.sessions.get("codex", SCOPE) is None
    first, second = runner.sessions.lineage("codex", SCOPE)
    assert first.cause == "the agent named it 0199-native" and second == closed


def test_what_is_refused(runner: Runner) -> None:
    """A second live session, an unknown agent, a missing scope, an invalid lifetime and a missing
    session are refused."""
    runner.sessions.create("claude", SCOPE)
    with pytest.raises(Conflict):
        runner.sessions.create("claude", SCOPE)
    with pytest.raises(AgentMissing):
        runner.sessions.create("nobody", SCOPE)
    with pytest.raises(UsageError, match="scope"):
        runner.sessions.create("claude", "")
    for seconds in (-1.0, float("nan"), 1e300):
        with pytest.raises(UsageError, match="lifetime"):
            runner.sessions.extend("claude", SCOPE, seconds)
    for verb in (runner.sessions.close, runner.sessions.count_task, runner.sessions.extend):
        with pytest.raises(NotFound):
            verb("claude", "elsewhere")


def test_what_an_attempt_is_at_work_on_stays(runner: Runner) -> None:
    """While an attempt runs in a scope, the session of that scope cannot be changed. Afterwards it
    can."""
    runner.sessions.create("claude", SCOPE)
    run = runner.submit(TaskSpec(prompt="Hello", repo=str(runner._cwd), scope=SCOPE))
    assert runner._engine.store.claim("somebody", 60, run.id) is not None
    with pytest.raises(Conflict, match=run.name):
        runner.sessions.extend("claude", SCOPE)


def test_the_verbs_awaited(runner: Runner) -> None:
    """The methods of the asynchronous service do the same."""

    async def program() -> tuple[int, float | None]:
        async with perdure.AsyncRunner(runner) as awaited:
            await awaited.sessions.create("claude", SCOPE)
            await awaited.sessions.count_task("claude", SCOPE)
            found = await awaited.sessions.get("claude", SCOPE)
            assert found is not None and found.tasks == 1
            assert (await awaited.sessions.extend("claude", SCOPE, 5)).lifetime_s == 5
            with pytest.raises(Conflict):
                await awaited.sessions.create("claude", SCOPE)
            assert await awaited.sessions.rebuild() == ()
            statistics = await awaited.sessions.statistics(agent="claude")
            await awaited.sessions.update("claude", SCOPE, "native")
            await awaited.sessions.close("claude", SCOPE)
            return len(await awaited.sessions.lineage("claude", SCOPE)), statistics.success_rate

    assert asyncio.run(program()) == (2, None)
