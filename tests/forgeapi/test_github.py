"""GitHub's client on a small forge. Each request and answer is compared with GitHub's published
description of its API. No test uses the real GitHub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.model.forge.deliveries import Forge
from perdure.model.forge.state import CommentKind, IssueRef, Reaction
from tests.forgeapi.places import REPOSITORY, TOKENS, SmallPlace, small_place
from tests.forgeapi.suite import ForgeSuite
from tests.servers.forge import github
from tests.servers.forge.state import Sent


class TestGitHub(ForgeSuite):
    @pytest.fixture
    def place(self) -> Iterator[SmallPlace]:
        with small_place(Forge.GITHUB, github, check=github.check) as found:
            yield found

    def test_failed_deliveries(self, place: SmallPlace) -> None:
        """A delivery without a successful attempt is listed by its newest attempt, and can be
        requested again; one that succeeded later is not listed."""
        place.repo.hook = "https://perdure.example.com/webhooks/shop?x=1"
        at = place.small.state.tick()
        place.repo.sent = [
            Sent(1, "a-1", "issues", 502, at), Sent(2, "b-2", "issues", 200, at), Sent(3, "a-1", "issues", 503, at),
            Sent(4, "c-3", "issues", 500, at), Sent(5, "c-3", "issues", 202, at), Sent(0, "d-4", "push", 500, at - 10**6),
        ]  # fmt: skip
        found = place.forge.failed_deliveries(REPOSITORY, "/webhooks/shop", since=at)
        assert found is not None and [(each.delivery, each.id, each.event) for each in found] == [
            ("a-1", "3", "issues")
        ]
        place.forge.redeliver(REPOSITORY, found[0])
        assert place.repo.again == [3]

    def test_failed_deliveries_are_not_everybodys(self, place: SmallPlace) -> None:
        """The result is None if the login does not administer the webhooks, or if no webhook has
        the receiver's address."""
        assert place.forge.failed_deliveries(REPOSITORY, "/webhooks/shop", since=0) is None
        place.repo.hook = "https://perdure.example.com/webhooks/shop"
        assert place.forge.failed_deliveries(REPOSITORY, "/webhooks/shop", since=0) == []
        assert place.forge.failed_deliveries(REPOSITORY, "/webhooks/other", since=0) is None
        assert (
            place.with_token(TOKENS["cid"]).failed_deliveries(REPOSITORY, "/webhooks/shop", since=0)
            is None
        )

    def test_a_reaction_to_a_line(self, place: SmallPlace) -> None:
        """A reaction to a comment on a line uses another address than one to an ordinary
        comment."""
        number = place.pull("ben", "Lines", "ben/lines")
        place.review(number, "cid", "commented", "see", [("a.py", 3, "why")])
        ref = IssueRef(REPOSITORY, number, True)
        line = next(each for each in place.forge.comments(ref) if each.kind is CommentKind.LINE)
        place.forge.react(ref, Reaction.EYES, line)
        assert place.small.asked("POST", r"/pulls/comments/\d+/reactions$")
