"""The end of the work on a real Gitea: only saved work is removed, and what the forge keeps counts
as saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gitea.world import world
from tests.servers.gitea.server import Gitea

pytestmark = pytest.mark.forge


def test_squashed_and_its_branch_deleted(gitea: Gitea) -> None:
    """After a squash no branch has the agent's commits any more. Gitea keeps them with the pull
    request, so the workdir may be removed, and is restored with its commits when the issue is
    reopened."""
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
