"""Deliveries become work: one story with the real agent CLI. Without an agent: deliveries that must
not become work."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.agents.rehearsal import Rehearsal
from perdure.model.forge.deliveries import DeliveryState, Forge, Intent, IntentKind
from perdure.model.forge.rules import Rule, branch_of, issue_of, rules, wants
from tests.forges import payloads
from tests.journeys.stage import Stage
from tests.web.serving import Serving

CONFIG = """
permissions = "full"
[webhooks.tea]
forge = "gitea"
secret_file = "{{home}}/secret"
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{repo}"
"""


@pytest.fixture
def machine() -> Iterator[Callable[[str], tuple[Stage, Serving]]]:
    """Make a stage with Claude Code and a scripted model, and a server for it. The paths are short,
    because the path of a socket has at most 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="pw"))
    made: list[tuple[Stage, Serving]] = []

    def make(script: str) -> tuple[Stage, Serving]:
        one = Stage(directory, "claude", Rehearsal(script).start())
        made.append((one, Serving(one.home, CONFIG.format(repo=one.repo), **one.environ)))
        return made[-1]

    yield make
    for one, serving in made:
        serving.kill()
        one.close()
        one.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def labelled(body: Any) -> None:
    payloads.gitea_labels(body)
    body["issue"] |= {"title": "Rounding", "body": "The quercus total is off by a cent."}


def rejected(body: Any) -> None:
    payloads.gitea_rejected(body)
    body["repository"]["full_name"] = "gogits/hello-world"
    body["sender"]["login"] = "unknwon"
    body["pull_request"] |= {"number": 7}
    body["pull_request"]["head"] |= {
        "ref": "perdure/dev-1",
        "repo": {"full_name": "gogits/hello-world"},
    }


def stranger(body: Any) -> None:
    payloads.gitea_labels(body)
    body["sender"]["login"] = "mallory"


def send(serving: Serving, event: str, body: bytes, id: str) -> int:
    return serving.send("/webhooks/tea", body, payloads.headers(Forge.GITEA, event, body, id=id))[0]


def settled(serving: Serving) -> list[tuple[str, DeliveryState]]:
    return [(each.id, each.state) for each in serving.inbox()]


def test_from_a_label_to_a_review_in_one_conversation(
    machine: Callable[[str], tuple[Stage, Serving]], tmp_path: Path
) -> None:
    """A label starts a task on its own branch. The review of its pull request continues the same
    conversation with only the new text, even though the server was killed while the agent was
    running and each webhook came twice."""
    last = f"hold {tmp_path / 'go'}\nsay Two."
    one, serving = machine(
        f"run echo one > one.txt\n---\nsay One.\n---\nrun echo two > two.txt\n---\n{last}\n"
    )
    serving.start("--jobs", "1")
    label = payloads.derived("gitea", "issues_opened", labelled)
    assert [send(serving, "issue_label", label, each) for each in ("one", "one-again")] == [
        202,
        202,
    ]

    def run() -> dict[str, Any]:
        (found,) = json.loads(one.perdure("ls", "--json").out)["runs"]
        return one.show(found["name"])

    serving.until(
        lambda: [state for _, state in settled(serving)] == [DeliveryState.HANDLED],
        "the label became a task",
    )
    serving.until(lambda: run()["state"] == "succeeded", "the first turn is done")
    review = payloads.derived("gitea", "pull_request_opened", rejected)
    assert send(serving, "pull_request_review_rejected", review, "two") == 202
    serving.until(
        lambda: (Path(run()["workspace"]["path"]) / "two.txt").exists(),
        "the agent is in its second turn",
    )
    serving.kill()
    (tmp_path / "go").touch()
    serving.start("--jobs", "1")
    assert send(serving, "pull_request_review_rejected", review, "two") == 202
    serving.until(lambda: run()["state"] == "succeeded", "the second turn is done")
    found = run()
    assert len(found["attempts"]) == 2, "the live attempt was adopted, and not begun again"
    assert found["attempts"][1]["receipt"]["verdict"] == "native"
    assert found["context_version"] == 2 and found["workspace"]["branch"] == "perdure/dev-1"
    before, after = one.rehearsal.prompts()
    assert "quercus" in before and "#1 of gogits/hello-world" in before and "Rounding" in before
    assert "Round half to even." in after and "quercus" not in after
    assert settled(serving) == [("one", DeliveryState.HANDLED), ("two", DeliveryState.HANDLED)]
    assert serving.stop() == 0
    one.nothing_survives()


def test_what_does_not_become_work(machine: Callable[[str], tuple[Stage, Serving]]) -> None:
    """A stranger's label, a review of an unknown pull request, and a closed issue are ignored, and
    no task is made."""
    one, serving = machine("say Never.")
    serving.start("--jobs", "0")
    send(serving, "issue_label", payloads.derived("gitea", "issues_opened", stranger), "stranger")
    send(
        serving,
        "pull_request_review_rejected",
        payloads.derived("gitea", "pull_request_opened", rejected),
        "review",
    )
    send(serving, "issues", payloads.raw("gitea", "issues_closed"), "closed")
    ignored = [(each, DeliveryState.IGNORED) for each in ("stranger", "review", "closed")]
    serving.until(lambda: settled(serving) == ignored, "all are settled")
    assert json.loads(one.perdure("ls", "--json").out)["runs"] == []
    reasons = [each.reason for each in serving.inbox()]
    assert reasons == ["no rule matches", "dev has no run to continue", "no agent works on it"]


RULE = Rule(
    name="dev",
    agent="claude",
    authors=("Ada",),
    clone="/srv/{repository}",
    login="dev-bot",
    labels=("agent",),
)


def intent(kind: IntentKind, **more: Any) -> Intent:
    return Intent(
        kind=kind, forge=Forge.GITHUB, repository="shop/web", author="ada", **({"number": 4} | more)
    )


@pytest.mark.parametrize(
    ("asked", "trigger"),
    [
        (intent(IntentKind.ASSIGNED, whom=("Dev-Bot",)), "assigned"),
        (intent(IntentKind.ASSIGNED, whom=("ann",)), ""),
        (intent(IntentKind.LABELLED, labels=("agent", "bug")), "labelled"),
        (intent(IntentKind.LABELLED, labels=("bug",)), ""),
        (intent(IntentKind.OPENED, mentions=("dev-bot",)), "mentioned"),
        (intent(IntentKind.COMMENTED, mentions=("dev-bot",)), "mentioned"),
        (intent(IntentKind.COMMENTED), "commented"),
        (intent(IntentKind.CI_FAILED), "ci_failed"),
        (intent(IntentKind.CI_FAILED, text="perdure/dev"), ""),
        (intent(IntentKind.CLOSED), ""),
    ],
)
def test_what_an_agent_wants(asked: Intent, trigger: str) -> None:
    """An agent handles events that mention it, have its label or concern its work, but only those
    of the authors that its rule names, and never its own events."""
    assert wants(RULE, asked) == trigger
    for author in ("mallory", "dev-bot", ""):
        assert wants(RULE, replace(asked, author=author)) == ""


def test_a_pull_request_of_its_own_branch() -> None:
    """The agent's own branch leads back to its issue. A branch with a similar name does not."""
    assert (
        issue_of(RULE, intent(IntentKind.COMMENTED, pull=True, number=9, branch=branch_of(RULE, 4)))
        == 4
    )
    for branch in ("perdure/dev-04", "perdure/dev2-4", "x/perdure/dev-4", "perdure/dev-4x", ""):
        assert issue_of(RULE, intent(IntentKind.COMMENTED, pull=True, number=9, branch=branch)) == 9


GOOD = {"agent": "claude", "authors": ["ada"], "clone": "https://git.example.com/{repository}.git"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"authors": ["*"]}, {"authors": []}, {"authors": "ada"}, {"agent": ""}, {"clone": "http://git.example.com/x"}, {"more": 1},
        {"clone": "https://user:word@git.example.com/x"}, {"clone": "ssh://x"}, {"triggers": ["never"]}, {"labels": [7]},
        {"concurrency": 0}, {"concurrency": True}, {"permissions": "all"}, {"git_name": "Dev"}, {"git_name": "a<b", "git_email": "d@x"},
        {"templates": "here"}, {"timeout": "soon"}, {"budget_usd": -1}, {"archive": "tar"},
    ],
)  # fmt: skip
def test_rules_that_are_refused(wrong: dict[str, Any]) -> None:
    """A rule is refused with a sentence if everybody is an author, if an address is not https or
    has credentials, or if a trigger is unknown."""
    assert rules({"dev": GOOD})[0].authors == ("ada",)
    with pytest.raises(ValueError, match="dev"):
        rules({"dev": GOOD | wrong})
