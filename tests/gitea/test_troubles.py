"""A real Gitea that stops, starts again, and refuses a token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gitea.world import PATIENCE_S, world
from tests.servers.gitea.server import Gitea, running

pytestmark = [pytest.mark.forge, pytest.mark.timeout(900)]

SCRIPT = """run echo up > rounding.txt
---
hold {go}
say It rounds up now.
"""


@pytest.fixture
def own() -> Iterator[Gitea]:
    """Start a Gitea that the test may kill."""
    with running() as found:
        yield found


def test_it_is_down_when_the_work_begins(own: Gitea) -> None:
    """Gitea is killed after the issue was received. The attempt waits for Gitea and says so. It
    starts when Gitea runs again."""
    with world(own, "say One.\n") as one:
        one.start("--jobs", "0")
        one.issue("Rounding", "The total is off by a cent.")
        one.until(one.runs, "the issue is a task")
        one.serving.kill()
        own.kill()
        one.serving.start("--jobs", "1")
        waits = one.until(
            lambda: next((each for each in one.runs() if each["reason"]), None),
            "it says why it waits",
        )
        assert waits["state"] == "queued" and own.url in waits["reason"]
        own.start()
        done = one.settled(2)
        *waited, last = (each["outcome"]["kind"] for each in done["attempts"])
        assert set(waited) == {"overloaded"} and last == "succeeded"
        assert len(one.prompts()) == 1


def test_it_goes_away_while_the_agent_is_at_work(own: Gitea, tmp_path: Path) -> None:
    """The run succeeds while the forge is down, and perdure logs that its report on the forge is
    incomplete. After perdure and the forge were killed and started again, the branch, one pull
    request, one comment and the status are on the forge."""
    with world(own, SCRIPT.format(go=tmp_path / "go"), 'publish = "pull"') as one:
        one.start("--jobs", "1")
        one.issue("Rounding", "The total is off by a cent.")
        one.rehearsal.wait_for(1, PATIENCE_S)
        own.kill()
        (tmp_path / "go").touch()
        name = one.settled(1)["name"]
        one.until(
            # The reaction to the issue may be missing too, if the forge was killed before it.
            lambda: re.search(f"report of {name} is incomplete: .*not pushed", one.serving.said()),
            "it is told that the forge does not answer",
        )
        one.serving.kill()
        one.serving.start("--jobs", "1")
        own.start()
        pull = one.until(one.pulls, "the pull request is there")[0]
        one.until(lambda: "pull request 2" in one.comment(), "the comment is there")
        one.until(
            lambda: one.statuses(pull["head"]["sha"]) == {"perdure/dev": "success"},
            "the status is there",
        )
        assert len(one.pulls()) == 1 and len(one.prompts()) == 1


def test_a_token_that_is_taken_no_more(own: Gitea) -> None:
    """No work begins without an answer of the forge. The error names the place where the token is
    stored, but not the token. If the same file gets a new token, work begins without a restart."""
    with world(own, "say One.\n") as one:
        one.start("--jobs", "1")
        old = own.tokens["dev-bot"]
        own.revoke("dev-bot")
        one.issue("Rounding", "The total is off by a cent.")
        waits = one.until(
            lambda: [each.reason for each in one.serving.inbox() if "token" in each.reason],
            "it waits",
        )
        assert str(one.token) in waits[0] and one.runs() == []
        assert old not in one.serving.said() + one.stage.perdure("inbox", "--json").out
        one.token.write_text(own.tokens["dev-bot"])
        one.settled(1)
        one.until(lambda: "is done" in one.comment(), "the comment is there")


def test_what_happens_while_perdure_is_down(gitea: Gitea) -> None:
    """Gitea sends no delivery twice, so after a restart perdure asks for missed events. An issue
    that a permitted person assigned in the meantime becomes work; one that a stranger opened does
    not. A run whose pull request was merged is cleaned up. Each happens once, however often perdure
    is started."""
    with world(gitea, SCRIPT.format(go="/"), 'publish = "pull"', 'access = "write"') as one:
        one.start("--jobs", "1")
        one.serving.kill()
        one.issue("Rounding", "The total is off by a cent.")
        one.issue("A poem", "@dev-bot write one", assigned=False, by="mallory")
        one.serving.start("--jobs", "1")
        run = one.settled(1)
        assert run["workspace"]["branch"] == "perdure/dev-1" and len(one.runs()) == 1
        pull = one.until(one.pulls, "the pull request is there")[0]
        one.until(lambda: f"pull request {pull['number']}" in one.comment(), "the comment is there")
        one.serving.kill()
        gitea.merge(one.repository, pull["number"], by="ada")
        one.serving.start("--jobs", "1")
        one.until(lambda: not Path(run["workspace"]["path"]).exists(), "the workdir is cleaned up")
        assert len(one.prompts()) == 1 and len(one.runs()) == 1
