"""A real Gitea's webhooks equal the recorded ones, and reach a real `perdure serve`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure.forge.webhooks.intake import receive
from perdure.model.forge.deliveries import Forge
from tests.forges.test_gitea_recorded import SAID, comes_to
from tests.servers.gitea.listener import listening
from tests.servers.gitea.server import Gitea, running
from tests.servers.gitea.story import SECRET, recording
from tests.web.serving import Serving

pytestmark = pytest.mark.forge

CONFIG = """
[webhooks.tea]
forge = "gitea"
secret_file = "{home}/secret"
"""


def test_what_it_sends_is_what_was_recorded() -> None:
    """Each delivery of a complete story is authentic with its real headers, and becomes the same
    intent as the recorded one. None is missing."""
    with running() as own, listening() as listener:
        told = recording(own, listener)
    for name, call in told.items():
        arrived = receive(
            call.headers, call.body, source="tea", secrets=[SECRET], now_s=0, expected=Forge.GITEA
        )
        comes_to(Forge.GITEA, arrived.event, call.body, name)
    assert set(told) == set(SAID)


def test_it_reaches_perdure(gitea: Gitea, serves: Callable[..., Serving]) -> None:
    """A delivery about an issue is in the inbox under the id that Gitea gave it. A delivery that is
    signed with another secret is not. A delivery that was sent while perdure was down is lost,
    because Gitea does not send it again; the next one arrives."""
    serving = serves(CONFIG).start()
    gitea.user("ann")
    repository = gitea.repository("ann", "inbox")

    def hooked(secret: str) -> None:
        gitea.webhook(repository, f"http://127.0.0.1:{serving.port}/webhooks/tea", secret)

    def opened(title: str) -> None:
        gitea.api("POST", f"/repos/{repository}/issues", {"title": title, "body": ""}, by="ann")

    def titles() -> list[str]:
        return [each.intent.title for each in serving.inbox() if each.intent]

    hooked(SECRET)
    opened("One")
    serving.until(titles, "the issue is there")
    (first,) = [each for each in serving.inbox() if each.intent]
    assert first.intent is not None and (first.intent.repository, first.intent.author) == (
        repository,
        "ann",
    )
    assert len(first.id) == 36 and first.forge is Forge.GITEA
    hooked("another secret of sixteen")
    opened("Two")
    serving.until(lambda: "signature" in serving.said(), "it is refused")
    serving.stop()
    hooked(SECRET)
    opened("Three")
    gitea.until(lambda: "connection refused" in gitea.said(), "Gitea could not deliver it")
    serving.start()
    hooked(SECRET)
    opened("Four")
    serving.until(lambda: "Four" in titles(), "the last issue is there")
    assert titles() == ["One", "Four"]
