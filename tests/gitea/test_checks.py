"""On a real Gitea: a failed run of Actions on the agent's push; and comments with the verdict on
the run's work and its signed receipt."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.model.forge.deliveries import DeliveryState, IntentKind
from tests.gitea.world import World, world
from tests.servers.gitea.runner import Runner, workflow
from tests.servers.gitea.server import Gitea
from tests.servers.gitea.story import ON_PUSH

pytestmark = [pytest.mark.forge, pytest.mark.journey, pytest.mark.timeout(900)]

SCRIPT = """run echo up > rounding.txt && git add rounding.txt && git commit -qm 'Round up'
---
say It rounds up now.
---
say The check is mended.
"""
ISSUE = "The quercus total is off by a cent."
KEY = "ghp_0123456789abcdefghijABCDEFGHIJ012345"


def failures(one: World) -> list[tuple[str, DeliveryState]]:
    """Return the author and the state of each delivery of a failed check."""
    return [
        (each.intent.author, each.state)
        for each in one.serving.inbox()
        if each.intent and each.intent.kind is IntentKind.CI_FAILED
    ]


def test_a_red_run_of_what_the_agent_pushed(gitea: Gitea) -> None:
    """The job's status and the workflow's run become one update in the same conversation, with the
    error from the job's log. Their authors are only the agent itself, which pushed, and Gitea."""
    with world(gitea, SCRIPT, 'publish = "pull"') as one:
        path = ".gitea/workflows/push.yml"
        gitea.commit(one.repository, "main", path, workflow(ON_PUSH), by="ada")
        runner = Runner(gitea, one.repository)
        one.start()
        one.issue("Rounding", ISSUE)
        one.settled(1)
        one.until(one.pulls, "the pull request is there")
        runner.fail("make test", "E   AssertionError: 10.01 != 10.00", f"token {KEY}")
        run = one.settled(2)
        assert [each["receipt"]["verdict"] for each in run["attempts"]] == ["fresh", "native"]
        one.until(lambda: len(failures(one)) == 2, "both events are there")
        one.until(
            lambda: DeliveryState.RECEIVED not in [state for _, state in failures(one)],
            "both are settled",
        )
        assert sorted(failures(one)) == sorted(
            [
                ("dev-bot", DeliveryState.IGNORED),
                ("gitea-actions", DeliveryState.HANDLED),
            ]
        )
        _, told = one.prompts()
        assert "perdure/dev-1" in told and "E   AssertionError: 10.01 != 10.00" in told
        assert KEY not in told and "quercus" not in told
        one.serving.stop()
        assert len(one.run()["attempts"]) == 2


def test_the_verdict_and_the_receipt(gitea: Gitea, tmp_path: Path) -> None:
    """The comment on the issue has the verdict on the work with its evidence. The signed receipt is
    on the issue and on the pull request, once each, and verifies."""
    more = 'publish = "pull"\nverify = "grep -q up rounding.txt"'
    with world(gitea, SCRIPT, more, settings='receipts = "comment"') as one:
        key, receipt = tmp_path / "host.pub", tmp_path / "receipt.json"
        key.write_text(one.stage.perdure("key", "make").out)
        one.start()
        number = one.issue("Rounding", ISSUE)
        name = one.settled(1)["name"]
        pull = one.until(one.pulls, "the pull request is there")[0]["number"]
        for place in (number, pull):
            text = one.until(
                lambda place=place: one.comment(place) if signed(one.comment(place)) else "",
                f"the receipt is on {place}",
            )
            (line,) = signed(text)
            # The receipt was signed with the newline at its end.
            receipt.write_text(f"{line}\n")
            words = ("receipt", "verify", str(receipt), "--key", str(key), "--run", name)
            assert one.stage.perdure(*words).code == 0
        said = one.comment(number)
        assert "**Work: done**" in said
        assert "Check (`verify`): `grep -q up rounding.txt` exit code 0" in said
        assert "Changed: 1 file(s), +1 -0 lines, 1 commit(s)" in said


def signed(text: str) -> list[str]:
    """Return the signed statements in a comment."""
    return [line for line in text.splitlines() if line.startswith('{"payloadType"')]
