"""Agents that are kept between attempts, on the real Claude Code: one process, many tasks, and every guarantee of an attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import perdure
from perdure.events import AgentKeptWarm, AgentLaunched, AnyEvent
from tests.journeys.stage import Stage, said

SCRIPT = "by history\nrun echo one > one.txt\n---\nsay One.\n---\nrun echo two > two.txt\n---\nsay Two.\n---\nsay Three.\n---\nsay Four.\n"
LINE: dict[str, Any] = {"agent": "claude", "permissions": "full", "scope": "plan:p/main", "branch": "perdure/p-main"}


@pytest.fixture
def agent() -> str:
    return "claude"


def events(runner: perdure.Runner, name: str, kind: type[AnyEvent]) -> list[Any]:
    """What the journal of a run says of one kind."""
    return [record.event for record in runner.history(name) if isinstance(record.event, kind)]


def test_one_process_serves_three_tasks(stage: Callable[..., Stage]) -> None:
    """Three tasks of a line are three turns of one process: each has its own output, usage and native receipt, the model sees all that
    was said, and nothing is left when the program ends."""
    one = stage(SCRIPT)
    with perdure.open(cwd=one.repo, environ=one.environ) as runner:
        reports = []
        for number in range(3):
            assert runner.run(f"Task {number}.", name=f"t{number}", **LINE).state == "succeeded"
            reports.append(runner.report(f"t{number}")["attempts"][0])
        launched = [events(runner, f"t{number}", AgentLaunched)[0] for number in range(3)]
        assert len({each.pid for each in launched}) == 1
        assert [each.turn for each in launched] == [1, 2, 3]
        assert [len(events(runner, f"t{number}", AgentKeptWarm)) for number in range(3)] == [1, 1, 1]
        assert one.marked()
    assert [each["receipt"]["verdict"] for each in reports] == ["fresh", "native", "native"]
    assert [each["usage"]["input"] for each in reports] == [200, 200, 100]
    last = said(one.rehearsal.requests[-1].messages)
    assert all(f"user: Task {number}." in last for number in range(3))
    assert "assistant: One." in last
    assert "assistant: Two." in last
    one.nothing_survives()
