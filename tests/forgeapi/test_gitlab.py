"""GitLab's client on a small forge that was made from GitLab's documentation. No test uses the real
GitLab."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from perdure.errors import NotFound
from perdure.model.forge.deliveries import Forge
from perdure.model.forge.state import Access, CheckState, CommentKind, IssueRef, Reaction
from tests.forgeapi.places import REPOSITORY, SmallPlace, small_place
from tests.forgeapi.suite import ForgeSuite
from tests.servers.forge import gitlab
from tests.servers.forge.state import Sent


class TestGitLab(ForgeSuite):
    verdicts = False

    @pytest.fixture
    def place(self) -> Iterator[SmallPlace]:
        with small_place(Forge.GITLAB, gitlab) as found:
            yield found

    def test_what_events_say_of_themselves_is_left_out(self, place: SmallPlace) -> None:
        """A note that GitLab itself wrote about an event does not count as a comment."""
        number = place.issue("ben", "Notes")
        place.small.state.say(
            REPOSITORY, number, "ben", "changed the description", verdict="system"
        )
        place.say(IssueRef(REPOSITORY, number), "ben", "hello")
        assert [each.text for each in place.forge.comments(IssueRef(REPOSITORY, number))] == [
            "hello"
        ]

    def test_comments_of_one_moment_are_in_order(self, place: SmallPlace) -> None:
        """Comments that were written at the same moment have the order of their numbers."""
        number = place.issue("ben", "Many")
        place.small.state._ids = count(95)
        for text in range(12):
            place.small.state.say(REPOSITORY, number, "ben", str(text))
        for said in place.small.state.repositories[REPOSITORY].items[number].said:
            said.created = 1_800_000_000
        said = place.forge.comments(IssueRef(REPOSITORY, number))
        assert [each.text for each in said] == [str(text) for text in range(12)]

    def test_issues_and_merge_requests_are_counted_apart(self, place: SmallPlace) -> None:
        """Issues and merge requests are numbered separately: an issue is not found at a merge
        request's address."""
        number = place.issue("ben", "Only an issue")
        with pytest.raises(NotFound):
            place.forge.issue(IssueRef(REPOSITORY, number, True))

    def test_a_project_in_groups(self, place: SmallPlace) -> None:
        """The complete path of a project is sent as one part of the address."""
        place.small.state.repository("shop/back/end", dev_bot="write")
        number = place.small.state.issue("shop/back/end", "ben", "Deep").number
        assert place.forge.issue(IssueRef("shop/back/end", number)).title == "Deep"

    def test_a_status_twice(self, place: SmallPlace) -> None:
        """GitLab refuses to set a status to the state that it already has. perdure does not report
        that as an error. A reaction to a missing issue is reported."""
        commit = place.branch("twice")
        for _ in range(2):
            place.forge.set_status(REPOSITORY, commit, CheckState.PENDING, context="perdure")
        assert [each.state for each in place.forge.checks(REPOSITORY, commit)] == [
            CheckState.PENDING
        ]
        gone = IssueRef(REPOSITORY, 999)
        with pytest.raises(NotFound):
            place.forge.react(gone, Reaction.EYES)

    def test_who_is_blocked_may_nothing(self, place: SmallPlace) -> None:
        """A blocked member has no permissions: only active members count."""
        place.small.state.blocked.add("ada")
        assert place.forge.permission(REPOSITORY, "ada") is Access.NONE

    def test_failed_deliveries(self, place: SmallPlace) -> None:
        """A delivery without a successful attempt is listed, and can be sent again. The result is
        None if GitLab does not answer for this webhook."""
        assert place.forge.failed_deliveries(REPOSITORY, "/webhooks/lab", since=0) is None
        place.repo.hook = "https://perdure.example.com/webhooks/lab"
        place.repo.sent = [
            Sent(1, "k-1", "Issue Hook", 0, 0),
            Sent(2, "k-2", "Note Hook", 500, 0),
            Sent(3, "k-2", "Note Hook", 202, 0),
        ]
        found = place.forge.failed_deliveries(REPOSITORY, "/webhooks/lab", since=0)
        assert found is not None and [(each.delivery, each.id, each.event) for each in found] == [
            ("k-1", "1", "Issue Hook")
        ]
        place.forge.redeliver(REPOSITORY, found[0])
        assert place.repo.again == [1]

    def test_a_reaction_to_a_comment_on_a_line(self, place: SmallPlace) -> None:
        """A comment on a line can get a reaction, like any other comment."""
        number = place.pull("ben", "Lines", "ben/lines")
        place.review(number, "cid", "commented", "", [("a.py", 3, "why")])
        ref = IssueRef(REPOSITORY, number, True)
        line = place.forge.comments(ref)[0]
        assert (line.kind, line.path, line.line) == (CommentKind.LINE, "a.py", 3)
        place.forge.react(ref, Reaction.EYES, line)
