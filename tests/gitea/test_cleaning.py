"""The end of the work on a real Gitea: only saved work is removed. Commits that the forge keeps
count as saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gitea.world import world
from tests.servers.gitea.server import Gitea

pytestmark = pytest.mark.forge


def test_squashed_and_its_branch_deleted(gitea: Gitea) -> None:
    """After a squash no branch has the agent's commits. Gitea keeps them with the pull request, so
    the workdir may be removed. When the issue is reopened, the workdir is restored with its
    commits."""
    with world(
        gitea,
        "run echo up > rounding.txt && git add . && git commit -qm up\n---\nsay Done.\n---\nsay "
        "Again.\n",
        'publish = "pull"',
    ) as one:
        one.start()
        one.issue("Rounding", "Off by a cent.")
        run = one.settled(1)
        workdir = Path(run["workspace"]["path"])
        one.until(one.pulls, "the pull request is there")
        one.do("POST", "/pulls/2/merge", {"Do": "squash", "delete_branch_after_merge": True})
        one.until(lambda: not workdir.exists(), "the workdir is cleaned up")
        assert [each["name"] for each in one.do("GET", "/branches")] == ["main"]
        one.do("PATCH", "/issues/1", {"state": "open"})
        one.until(lambda: (workdir / "rounding.txt").exists(), "the workdir is back")
        one.settled(2)
        assert one.run()["conditions"] == []


def test_a_comment_and_the_closing_together(gitea: Gitea) -> None:
    """Mallory comments and Ada closes the issue while the agent works. Mallory gets a reply. A
    mention on the closed issue continues the conversation, and the prompt also has Mallory's
    comment. The run does not end although the issue is closed."""
    script = "run sleep 15\n---\nsay Done.\n---\nsay Again.\n"
    with world(gitea, script, whom='authors = ["ada", "mallory"]') as one:
        one.start()
        one.issue("Rounding", "Off by a cent.")
        one.until(lambda: one.runs() and one.run()["state"] == "running", "the agent works")
        one.say(1, "Round up, too.", by="mallory")
        one.do("PATCH", "/issues/1", {"state": "closed"})

        def replies() -> list[str]:
            said = [each["body"] for each in one.do("GET", "/issues/1/comments")]
            return [text for text in said if "had read your comment" in text]

        one.until(replies, "Mallory is told")
        assert "@mallory This issue was closed before **dev** had read" in replies()[0]
        one.say(1, "@dev-bot do it after all")
        run = one.settled(2)
        assert len(replies()) == 1 and run["state"] == "succeeded"
        (told,) = [text for text in one.prompts() if "after all" in text]
        assert "Round up, too." in told
