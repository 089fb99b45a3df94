"""The journey of an issue on a real Gitea, with the real Claude Code. The texts that reached the
model and the state of the forge are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gitea.world import World, world
from tests.servers.gitea.server import Gitea

pytestmark = [pytest.mark.forge, pytest.mark.journey, pytest.mark.timeout(900)]

SCRIPT = """run echo up > rounding.txt && git add rounding.txt && git commit -qm 'Round up'
---
say It rounds up now.
---
run echo even > rounding.txt
---
say It rounds half to even now.
---
run cat rounding.txt > seen.txt
---
say Negative numbers too.
"""
ISSUE = "The quercus total is off by a cent."


def test_from_an_issue_to_its_end_and_back(gitea: Gitea) -> None:
    """An assigned issue leads to a branch, a pull request and one comment. A review continues the
    same conversation, and its prompt has only what is new. After the merge the run is cleaned up.
    When the issue is reopened, workdir and conversation are restored."""
    with world(gitea, SCRIPT, 'publish = "pull"') as one:
        one.start()
        assert one.issue("Rounding", ISSUE) == 1
        _first(one)
        _reviewed(one)
        _merged(one)
        _reopened(one)
        assert one.serving.stop() == 0
        one.stage.nothing_survives()


def _first(one: World) -> None:
    run = one.settled(1)
    assert run["attempts"][0]["outcome"]["kind"] == "succeeded"
    pull = one.until(one.pulls, "the pull request is there")[0]
    assert (pull["number"], pull["head"]["ref"], pull["base"]["ref"]) == (
        2,
        "perdure/dev-1",
        "main",
    )
    assert "Closes #1" in pull["body"] and pull["user"]["login"] == "dev-bot"
    assert one.file("perdure/dev-1", "rounding.txt") == "up\n"
    one.until(
        lambda: "is done" in one.comment() and "pull request" in one.comment(),
        "the comment says so",
    )
    one.until(lambda: {"eyes", "rocket"} <= one.reactions(1), "both reactions are there")
    one.until(
        lambda: one.statuses(pull["head"]["sha"]) == {"perdure/dev": "success"},
        "the commit has its status",
    )
    (prompt,) = one.prompts()
    assert ISSUE in prompt and f"#1 of {one.repository}" in prompt


def _reviewed(one: World) -> None:
    before = one.do("GET", "/pulls/2")["head"]["sha"]
    line = {"path": "rounding.txt", "new_position": 1, "body": "Bankers do otherwise."}
    one.do(
        "POST",
        "/pulls/2/reviews",
        {"event": "REQUEST_CHANGES", "body": "Round half to even.", "comments": [line]},
    )
    run = one.settled(2)
    first, second = run["attempts"]
    assert second["receipt"]["verdict"] == "native" and second["session_id"] == first["session_id"]
    delta = one.prompts()[-1]
    assert (
        "Round half to even." in delta
        and "rounding.txt:1:\n> @@ " in delta
        and "\nBankers do otherwise." in delta
        and "quercus" not in delta
    )
    one.until(
        lambda: one.do("GET", "/pulls/2")["head"]["sha"] != before,
        "the branch has the second commit",
    )
    assert one.file("perdure/dev-1", "rounding.txt") == "even\n"
    one.until(lambda: "| 2 |" in one.comment(), "the same comment has both attempts")
    assert len(one.pulls()) == 1


def _merged(one: World) -> None:
    workdir = Path(one.run()["workspace"]["path"])
    one.gitea.merge(one.repository, 2, by="ada")
    one.until(lambda: not workdir.exists(), "the workdir is cleaned up")
    assert one.file("main", "rounding.txt") == "even\n"
    assert one.do("GET", "/issues/1")["state"] == "closed"
    assert len(one.run()["attempts"]) == 2


def _reopened(one: World) -> None:
    session = one.run()["attempts"][0]["session_id"]
    one.do("PATCH", "/issues/1", {"state": "open"})
    one.say(1, "Negative numbers too, please.")
    one.until(
        lambda: "Negative numbers too, please." in one.prompts()[-1],
        "the comment reached the model",
    )
    # An attempt that found the workdir locked, because its branch was being pushed, has not begun
    # and is left out.
    later = [
        each
        for each in one.settled(3)["attempts"][2:]
        if each["outcome"]["kind"] != "writer_conflict"
    ]
    assert {(each["receipt"]["verdict"], each["session_id"]) for each in later} == {
        ("native", session)
    }
    assert not any("quercus" in prompt for prompt in one.prompts()[1:])
    assert (Path(one.run()["workspace"]["path"]) / "seen.txt").read_text() == "even\n"
