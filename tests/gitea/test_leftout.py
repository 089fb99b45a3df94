"""perdure asks a real Gitea for facts that its webhooks leave out."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from perdure.forge.dispatch.current import with_branch, with_lines
from perdure.model.forge.deliveries import Delivery, DeliveryState, Forge, Intent, IntentKind
from perdure.model.forge.state import IssueRef
from tests.gitea.place import GiteaPlace
from tests.servers.gitea.server import Gitea

pytestmark = pytest.mark.forge


@pytest.fixture(scope="module")
def place(gitea: Gitea) -> Iterator[GiteaPlace]:
    found = GiteaPlace(gitea, "lamps")
    yield found
    found.close()


def delivery(intent: Intent, received: int) -> Delivery:
    return Delivery(
        number=1, source="tea", id="i", forge=Forge.GITEA, event="e", sha256="ab" * 32, state=DeliveryState.RECEIVED, reason="",
        received=received, updated=received, times=1, size=1, kept=True, intent=intent,
    )  # fmt: skip


def test_the_lines_of_a_review(place: GiteaPlace) -> None:
    """Each review gets its own comments on lines. They are matched by author and text and, if
    several are equal, by time."""
    number = place.pull("dev-bot", "Lines", "perdure/dev-4")
    ref = IssueRef(place.repository, number, True)

    def reviewed(author: str, line: str) -> int:
        place.review(number, author, "changes_requested", "See below.", [("README.md", 1, line)])
        return max(each.created for each in place.forge.comments(ref) if each.verdict)

    first = reviewed("ben", "say why")
    reviewed("ada", "not mine")
    place.gitea.until(lambda: time.time() * 1000 > first + 3000, "the forge's clock has moved on")
    second = reviewed("ben", "and how")
    intent = Intent(
        kind=IntentKind.CHANGES_REQUESTED, forge=Forge.GITEA, repository=place.repository, number=number, pull=True, author="Ben",
        text="See below.", at=first,
    )  # fmt: skip
    for received, line in ((first, "say why"), (second, "and how"), (second + 60_000, "and how")):
        said = with_lines(place.forge, delivery(intent, received), intent).text
        assert said.startswith("See below.\n\nREADME.md:1:\n> @@ ") and said.endswith(f"\n{line}")
        assert said.count("README.md:1:") == 1
    others = (
        {"author": "cid"},
        {"text": "else"},
        {"kind": IntentKind.COMMENTED},
        {"forge": Forge.GITHUB},
    )
    for other in (replace(intent, **change) for change in others):
        assert with_lines(place.forge, delivery(other, first), other) == other


def test_the_branch_of_a_failed_check(place: GiteaPlace) -> None:
    """A check that names only its commit belongs to the open pull request at that commit, if there
    is one."""
    number = place.pull("dev-bot", "Checked", "perdure/dev-5")
    commit = place.forge.pull(place.repository, number).head_commit
    intent = Intent(
        kind=IntentKind.CI_FAILED,
        forge=Forge.GITEA,
        repository=place.repository,
        author="ci",
        commit=commit,
    )
    found = with_branch(place.forge, intent)
    assert (found.number, found.pull, found.branch) == (number, True, "perdure/dev-5")
    for other in (
        replace(intent, commit="0" * 40),
        replace(intent, branch="main"),
        replace(intent, kind=IntentKind.COMMENTED),
    ):
        assert with_branch(place.forge, other) == other
