"""Before a delivery becomes work, perdure asks the forge for the current state, and whether the
author of the delivery may start an agent."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import store as stores
from perdure.model.forge.deliveries import DeliveryState, Forge
from tests.forges import payloads
from tests.servers.forge import SmallForge, gitea
from tests.web.serving import Serving

CONFIG = """
[webhooks.tea]
forge = "gitea"
secret_file = "{{home}}/secret"
url = "{url}"
token_file = "{{home}}/token"
[agents.dev]
agent = "claude"
login = "dev-bot"
labels = ["agent"]
clone = "{repo}"
[agents.chief]
agent = "claude"
login = "chief-bot"
access = "admin"
labels = ["chief"]
clone = "{repo}"
"""
NAME = "shop/prices"


@pytest.fixture
def forge() -> Iterator[SmallForge]:
    with SmallForge(gitea) as found:
        found.state.person("dev-bot", "t0ken-of-the-bot")
        found.state.repository(NAME, ada="admin", ben="write", cid="read", dev_bot="admin")
        yield found


@pytest.fixture
def serving(
    forge: SmallForge, serves: Callable[..., Serving], agents: dict[str, Path], tmp_path: Path
) -> Serving:
    repo = tmp_path / "repo"
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.invalid"]
    for words in (
        ["init", "-q", "-b", "main", "."],
        [*identity, "commit", "-q", "--allow-empty", "-m", "first"],
    ):
        repo.mkdir(exist_ok=True)
        subprocess.run(["git", *words], cwd=repo, check=True)
    found = serves(CONFIG.format(url=forge.url, repo=repo), PERDURE_CLAUDE=str(agents["claude"]))
    (tmp_path / "token").write_text("t0ken-of-the-bot\n")
    return found


def event(
    forge: SmallForge,
    author: str,
    number: int,
    name: str,
    change: Callable[[Any], None] = lambda body: None,
) -> bytes:
    """Return a webhook of a real Gitea, about an issue of the small forge in its current state."""

    def changed(body: Any) -> None:
        body["repository"]["full_name"] = NAME
        body["sender"] = {"login": author}
        item = forge.state.repositories[NAME].items.get(number)
        if item is not None:
            body["issue"] |= {
                "number": number,
                "title": item.title,
                "labels": [{"name": label} for label in item.labels],
            }
        change(body)

    return payloads.derived("gitea-1.26", name, changed)


def send(serving: Serving, event: str, body: bytes, id: str) -> None:
    assert (
        serving.send("/webhooks/tea", body, payloads.headers(Forge.GITEA, event, body, id=id))[0]
        == 202
    )


def told(serving: Serving) -> dict[str, tuple[DeliveryState, str]]:
    """Return state and reason of each delivery that came by webhook. Those that perdure itself
    found have other ids."""
    return {each.id: (each.state, each.reason) for each in serving.inbox() if ":" not in each.id}


def runs(serving: Serving) -> dict[str, str]:
    """Return the prompts of all runs, by their issue."""
    with contextlib.closing(stores.open(serving.state / "perdure.db", read_only=True)) as store:
        specs = [store.get(row.id).spec for row in store.find()]
    return {spec.labels["issue"]: spec.prompt for spec in specs}


def test_who_may_have_an_agent_at_work(forge: SmallForge, serving: Serving) -> None:
    """A rule without authors works for everybody who has write access to the repository according
    to the forge; a rule with `access`, for everybody with that access. For others it does nothing.
    It also does nothing for a delivery that is out of date, because the label was removed or the
    issue was closed or deleted."""
    state = forge.state
    for title, labels in (
        ("by a writer", ["agent"]), ("by a reader", ["agent"]), ("by a stranger", ["agent"]), ("no label any more", ["agent"]),
        ("closed", ["agent"]), ("for the chief", ["chief"]), ("not for the chief", ["chief"]),
    ):  # fmt: skip
        state.issue(NAME, "cid", title, "Please", labels)
    authors = {1: "ben", 2: "cid", 3: "mallory", 4: "ben", 5: "ben", 6: "ada", 7: "ben"}
    bodies = {
        number: event(forge, author, number, "issue_label.label_updated")
        for number, author in authors.items()
    }
    bodies[8] = event(
        forge, "ben", 1, "issue_label.label_updated", lambda body: body["issue"].update(number=8)
    )
    state.repositories[NAME].items[4].labels = []
    state.end(NAME, 5)
    state.repositories[NAME].items[1].title = "edited since"
    serving.start("--jobs", "0")
    for number, body in bodies.items():
        send(serving, "issue_label", body, f"d-{number}")
    serving.until(
        lambda: all(state is not DeliveryState.RECEIVED for state, _ in told(serving).values()),
        "all are settled",
    )
    found = told(serving)
    begun = runs(serving)
    assert (
        sorted(begun) == ["shop/prices#1", "shop/prices#6"]
        and "edited since" in begun["shop/prices#1"]
    )
    assert {one: why for one, (how, why) in found.items() if how is DeliveryState.IGNORED} == {
        "d-2": "cid may not write in shop/prices",
        "d-3": "mallory may not write in shop/prices",
        "d-4": "as of now, no rule matches",
        "d-5": "shop/prices#5 is now closed",
        "d-7": "ben is not an administrator",
        "d-8": "shop/prices#8 no longer exists",
    }


def test_what_a_forge_that_fails_costs(forge: SmallForge, serving: Serving) -> None:
    """While the forge does not answer, or rejects the token, deliveries wait with a reason. A new
    token in the token's file is enough to continue."""
    forge.state.issue(NAME, "cid", "Later", "", ["agent"])
    (serving.home / "token").write_text("expired")
    serving.start("--jobs", "0")
    send(serving, "issue_label", event(forge, "ben", 1, "issue_label.label_updated"), "one")
    waits = serving.until(lambda: told(serving)["one"][1], "it waits")
    assert "rejects the token in the file" in waits and str(serving.home / "token") in waits
    assert told(serving)["one"][0] is DeliveryState.RECEIVED and not runs(serving)
    serving.stop()
    (serving.home / "token").write_text("t0ken-of-the-bot")
    forge.fail(503)
    serving.start("--jobs", "0")
    serving.until(lambda: told(serving)["one"][0] is DeliveryState.HANDLED, "it became work")
    assert [*runs(serving)] == ["shop/prices#1"] and not forge.faults
