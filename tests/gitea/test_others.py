"""People who may use the agent on a real Gitea, and other events that continue its work."""

from __future__ import annotations

import pytest

from tests.gitea.world import World, world
from tests.servers.gitea.server import Gitea

pytestmark = [pytest.mark.forge, pytest.mark.journey, pytest.mark.timeout(900)]

SCRIPT = """run echo up > rounding.txt && git add rounding.txt && git commit -qm 'Round up'
---
say It rounds up now.
---
say The check is mended.
"""


def reasons(one: World, kind: str, author: str) -> list[str]:
    return [
        each.reason
        for each in one.serving.inbox()
        if each.intent and (each.intent.kind, each.intent.author) == (kind, author)
    ]


def test_who_may_write_and_a_check_that_failed(gitea: Gitea) -> None:
    """perdure asks Gitea who has write access. A mention by a reader is ignored with a reason, and
    an assignment by an owner starts work. A failed check of the branch's newest commit continues
    the same conversation, although Gitea does not name the branch. A failed check of another commit
    does not."""
    with world(gitea, SCRIPT, 'publish = "pull"', 'access = "write"') as one:
        one.start()
        number = one.issue("Rounding", "The quercus total is off by a cent.", assigned=False)
        one.say(number, "@dev-bot write me a poem", by="mallory")
        why = one.until(
            lambda: [each for each in reasons(one, "commented", "mallory") if each],
            "the mention is settled",
        )
        assert why == [f"mallory may not write in {one.repository}"] and one.runs() == []
        one.do("PATCH", f"/issues/{number}", {"assignees": ["dev-bot"]})
        one.settled(1)
        pull = one.until(one.pulls, "the pull request is there")[0]
        main = one.do("GET", "/branches/main")["commit"]["id"]
        for commit, url in (
            (main, "https://ci.example.com/6"),
            (pull["head"]["sha"], "https://ci.example.com/7"),
        ):
            one.do(
                "POST",
                f"/statuses/{commit}",
                {"state": "failure", "context": "ci/test", "target_url": url},
            )
        run = one.settled(2)
        assert [each["receipt"]["verdict"] for each in run["attempts"]] == ["fresh", "native"]
        assert (
            "https://ci.example.com/7" in one.prompts()[-1] and "perdure/dev-1" in one.prompts()[-1]
        )
        assert not any("ci.example.com/6" in prompt or "poem" in prompt for prompt in one.prompts())
