"""A real Gitea that goes away, comes back, and does not take a token any more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gitea.world import world
from tests.servers.gitea.server import Gitea, running

pytestmark = pytest.mark.forge


@pytest.fixture
def own() -> Iterator[Gitea]:
    """One that may be killed."""
    with running() as found:
        yield found


def test_it_is_down_when_the_work_begins(own: Gitea) -> None:
    """The issue was received, and then Gitea is killed: the attempt waits for it, says for what, and is made when it is there again."""
    with world(own, "say One.\n") as one:
        one.start("--jobs", "0")
        one.issue("Rounding", "The total is off by a cent.")
        one.serving.until(one.runs, "the issue is a task")
        one.serving.kill()
        own.kill()
        one.serving.start("--jobs", "1")
        waits = one.serving.until(lambda: next((each for each in one.runs() if each["reason"]), None), "it says why it waits")
        assert waits["state"] == "queued" and own.url in waits["reason"]
        own.start()
        done = one.settled(2)
        assert [each["outcome"]["kind"] for each in done["attempts"]] == ["overloaded", "succeeded"]
        assert len(one.prompts()) == 1
