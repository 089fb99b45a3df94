"""The promises that every `ForgeApi` keeps, as tests. A subclass provides the forge and the means
to change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest

from perdure.errors import ForgeDenied, ForgeRefused, NotFound
from perdure.model.forge.state import (
    Access,
    CheckState,
    CheckVerdict,
    CommentKind,
    IssueRef,
    Reaction,
)
from perdure.protocols import ForgeApi

HOSTILE = (
    '<script>alert(1)</script> \u202e @everyone `<!--` \U0001f600 "quoted" \\ \n\n```\n| a | b |'
)


class Place(Protocol):
    """A forge with a repository `shop/prices`: `ada` administers it, `ben` may write, `cid` may
    only read, and `dev-bot` is perdure's login.

    The methods of the people do what they would do on the forge's web pages.
    """

    forge: ForgeApi
    """The client of dev-bot, an administrator of shop/prices."""
    repository: str

    def as_reader(self) -> ForgeApi:
        """Return the client of cid."""
        ...

    def with_token(self, token: str) -> ForgeApi: ...

    def issue(
        self,
        author: str,
        title: str,
        text: str = "",
        labels: Sequence[str] = (),
        assignees: Sequence[str] = (),
    ) -> int: ...

    def pull(self, author: str, title: str, head: str, base: str = "main") -> int:
        """Make a branch with a commit, open a pull request from it, and return the number of the
        pull request."""
        ...

    def branch(self, name: str) -> str:
        """Make a branch with a commit, and return the commit."""
        ...

    def say(self, ref: IssueRef, author: str, text: str) -> None: ...

    def review(
        self,
        number: int,
        author: str,
        verdict: str,
        text: str,
        lines: Sequence[tuple[str, int, str]] = (),
    ) -> None:
        """Add a review. `verdict`: approved, changes_requested or commented."""
        ...

    def end(self, ref: IssueRef, *, merged: bool = False) -> None: ...

    def reopen(self, ref: IssueRef) -> None: ...

    def delete_comment(self, ref: IssueRef, id: str) -> None: ...

    def reactions(self, ref: IssueRef) -> set[tuple[str, str]]:
        """Return the login and the content of each reaction to the issue itself."""
        ...


class ForgeSuite:
    """The tests that every forge must pass. They need the fixture `place`, which may be shared,
    because every test makes its own issues."""

    verdicts = True
    """Whether the forge reports the verdict of a review."""

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError

    def test_it_knows_its_own_login_and_address(self, place: Place) -> None:
        """The login is that of the token, and the address is the configured one."""
        assert place.forge.whoami() == "dev-bot"
        assert place.forge.address.startswith("http") and not place.forge.address.endswith("/")

    def test_an_issue_is_told_as_it_stands(self, place: Place) -> None:
        """Title, text, author, labels, assignees and state of an issue are the current ones, even
        if the text is hostile."""
        number = place.issue("cid", "Rounding 'is' off", HOSTILE, ["agent", "bug"], ["dev-bot"])
        found = place.forge.issue(IssueRef(place.repository, number))
        assert (found.title, found.author, found.open, found.ref.pull) == (
            "Rounding 'is' off",
            "cid",
            True,
            False,
        )
        assert found.text.replace("\r\n", "\n").strip() == HOSTILE.strip()
        assert (set(found.labels), found.assignees) == ({"agent", "bug"}, ("dev-bot",))
        assert found.created and found.updated >= found.created and str(number) in found.url
        assert found.closed == 0
        place.end(found.ref)
        ended = place.forge.issue(found.ref)
        assert not ended.open and found.created <= ended.closed <= ended.updated
        place.reopen(found.ref)
        again = place.forge.issue(found.ref)
        assert again.open and again.closed == 0

    def test_what_is_not_there_is_not_found(self, place: Place) -> None:
        """A repository that does not exist, or whose name is invalid, raises NotFound."""
        for repository in (
            "shop/none",
            "none/none",
            "../user",
            "shop/prices/../..",
            "shop",
            "",
            "a/b?c=d",
            "shop/prices#1",
        ):
            with pytest.raises(NotFound):
                place.forge.issue(IssueRef(repository, 1))
            with pytest.raises(NotFound):
                place.forge.branch(repository, "main")
            with pytest.raises(NotFound):
                place.forge.permission(repository, "ada")

    def test_numbers_names_and_commits_that_are_not_there(self, place: Place) -> None:
        """A missing issue, pull request or commit raises NotFound. A missing branch is None."""
        with pytest.raises(NotFound):
            place.forge.issue(IssueRef(place.repository, 99_999))
        with pytest.raises(NotFound):
            place.forge.pull(place.repository, 99_999)
        with pytest.raises(NotFound):
            place.forge.set_status(place.repository, "main", CheckState.SUCCESS, context="perdure")
        assert place.forge.branch(place.repository, "no/such") is None
        assert place.forge.branch(place.repository, "../main") is None

    def test_permissions(self, place: Place) -> None:
        """The permission of each login is known. An unknown login has none. Case does not matter."""
        may = {
            login: place.forge.permission(place.repository, login)
            for login in ("ada", "BEN", "cid", "nobody-such")
        }
        assert may["ada"] is Access.ADMIN and may["BEN"] is Access.WRITE
        assert not may["cid"].reaches(Access.WRITE) and may["nobody-such"] is Access.NONE
        for name in ("..", ""):
            with pytest.raises(NotFound):
                place.forge.permission(place.repository, name)

    def test_one_comment_is_found_again_and_edited(self, place: Place) -> None:
        """A comment is found by its marker among others, but only if perdure wrote it. Editing it
        adds no comment."""
        ref = IssueRef(place.repository, place.issue("ben", "Sticky"))
        marker = "<!-- perdure:task=tr-1 -->"
        place.say(ref, "cid", f"{marker} not yours")
        place.forge.comment(ref, f"> {marker}\n> quoted\n\nBy a person with the same token.")
        assert place.forge.find_comment(ref, marker) is None
        made = place.forge.comment(ref, f"{marker}\n{HOSTILE}")
        place.say(ref, "ben", "thanks")
        found = place.forge.find_comment(ref, marker)
        assert found is not None and found.id == made.id and found.author == "dev-bot"
        place.forge.edit_comment(ref, found, f"{marker} done")
        again = place.forge.find_comment(ref, marker)
        assert again is not None and (again.id, again.text) == (made.id, f"{marker} done")
        assert len(place.forge.comments(ref)) == 4
        place.delete_comment(ref, made.id)
        assert place.forge.find_comment(ref, marker) is None
        with pytest.raises(NotFound):
            place.forge.edit_comment(ref, made, "gone")

    def test_comments_since(self, place: Place) -> None:
        """Comments since a time are listed, oldest first. Earlier ones are left out."""
        ref = IssueRef(place.repository, place.issue("ben", "Talk"))
        for text in ("one", "two", "three"):
            place.say(ref, "ben", text)
        said = place.forge.comments(ref)
        assert [each.text for each in said] == ["one", "two", "three"]
        assert {(each.author, each.kind) for each in said} == {("ben", CommentKind.COMMENT)}
        assert place.forge.comments(ref, since=said[-1].updated + 60_000) == []
        assert said[-1] in place.forge.comments(ref, since=said[-1].updated)

    def test_reactions_are_put_once(self, place: Place) -> None:
        """Adding a reaction that exists already is not an error. The forge has every reaction that
        perdure uses."""
        ref = IssueRef(place.repository, place.issue("ben", "React"))
        for reaction in (*Reaction, Reaction.EYES):
            place.forge.react(ref, reaction)
        assert len({each for each in place.reactions(ref) if each[0] == "dev-bot"}) == len(Reaction)
        place.forge.react(ref, Reaction.ROCKET, place.forge.comment(ref, "on me"))

    def test_a_pull_request_is_opened_once(self, place: Place) -> None:
        """A second call returns the open pull request. After that one is closed, it is still found,
        and the next call opens another."""
        head = "perdure/dev-1"
        commit = place.branch(head)
        assert place.forge.find_pull(place.repository, head) is None
        first = place.forge.open_pull(
            place.repository, head=head, base="main", title="Round up", text=f"For #1\n{HOSTILE}"
        )
        second = place.forge.open_pull(
            place.repository, head=head, base="main", title="Another", text=""
        )
        assert second.ref == first.ref and first.open and not first.merged and first.ref.pull
        assert (first.head, first.head_commit, first.base, first.head_repository) == (
            head,
            commit,
            "main",
            place.repository,
        )
        assert place.forge.pull(place.repository, first.ref.number).title == "Round up"
        place.end(first.ref)
        closed = place.forge.find_pull(place.repository, head)
        assert closed is not None and not closed.open and not closed.merged
        third = place.forge.open_pull(
            place.repository,
            head=head,
            base="main",
            title="Again",
            text="",
            draft=True,
        )
        assert third.ref != first.ref and third.open and third.draft

    def test_a_pull_request_of_nothing_is_refused(self, place: Place) -> None:
        """Without the branch no pull request is opened, and the error says so."""
        with pytest.raises((ForgeRefused, NotFound)):
            place.forge.open_pull(
                place.repository, head="no/such", base="main", title="Nothing", text=""
            )

    def test_merged_is_not_closed(self, place: Place) -> None:
        """A merged pull request is reported as merged, not as closed."""
        number = place.pull("ben", "Merge me", "ben/one")
        place.end(IssueRef(place.repository, number, True), merged=True)
        found = place.forge.pull(place.repository, number)
        assert found.merged and not found.open and found.created <= found.closed

    def test_reviews_and_their_lines(self, place: Place) -> None:
        """A review is among the comments of a pull request with its verdict, and its comments on
        lines have file and line."""
        number = place.pull("dev-bot", "Review me", "perdure/dev-2")
        ref = IssueRef(place.repository, number, True)
        place.say(ref, "cid", "looks fine")
        place.review(number, "ben", "changes_requested", "Not yet", [("README.md", 1, "say why")])
        said = place.forge.comments(ref)
        assert [each.text for each in said if each.author == "cid"] == ["looks fine"]
        if self.verdicts:
            assert [(each.text, each.verdict) for each in said if each.verdict] == [
                ("Not yet", CheckVerdict.CHANGES_REQUESTED)
            ]
        (line,) = [each for each in said if each.kind is CommentKind.LINE]
        assert (line.text, line.path, line.line, line.author) == ("say why", "README.md", 1, "ben")
        assert line.review in ("", *(each.id for each in said if each.kind is CommentKind.REVIEW))

    def test_a_pull_request_by_its_commit(self, place: Place) -> None:
        """The open pull request of a commit is found; a closed one, and a commit without any, are
        not."""
        number = place.pull("dev-bot", "By its commit", "perdure/dev-3")
        commit = place.forge.pull(place.repository, number).head_commit
        found = place.forge.pull_at(place.repository, commit)
        assert found is not None and (found.ref.number, found.head) == (number, "perdure/dev-3")
        place.end(found.ref)
        assert place.forge.pull_at(place.repository, commit) is None

    def test_a_commit_is_judged(self, place: Place) -> None:
        """A status of a commit is stored under its name. The newest status with a name is the
        current one."""
        commit = place.branch("judged")
        place.forge.set_status(
            place.repository, commit, CheckState.PENDING, context="perdure/dev", text="running"
        )
        place.forge.set_status(
            place.repository,
            commit,
            CheckState.SUCCESS,
            context="perdure/dev",
            text="x" * 300,
            url="https://perdure.example.com/1",
        )
        place.forge.set_status(place.repository, commit, CheckState.FAILURE, context="ci/test")
        found = {each.name: each for each in place.forge.checks(place.repository, commit)}
        assert (
            found["perdure/dev"].state is CheckState.SUCCESS
            and found["ci/test"].state is CheckState.FAILURE
        )
        assert (
            found["perdure/dev"].url == "https://perdure.example.com/1"
            and len(found["perdure/dev"].text) == 140
        )

    def test_a_branch_has_its_commit(self, place: Place) -> None:
        """The answer for a branch has its commit, also if the name has slashes and other special
        characters."""
        for name in ("feature/a-1", "ünï+ço&de", "a%2Fb"):
            commit = place.branch(name)
            found = place.forge.branch(place.repository, name)
            assert found is not None and (found.name, found.commit) == (name, commit)

    def test_open_issues_by_label_and_by_assignee(self, place: Place) -> None:
        """Open issues with a label or an assignee are found. Nothing is found for a label that no
        issue ever had."""
        one = place.issue("ben", "By label", labels=["sweep"])
        two = place.issue("ben", "By assignee", assignees=["dev-bot"])
        closed = place.issue("ben", "Closed", labels=["sweep"], assignees=["dev-bot"])
        place.end(IssueRef(place.repository, closed))
        by_label = {
            each.ref.number for each in place.forge.open_issues(place.repository, label="sweep")
        }
        by_assignee = {
            each.ref.number
            for each in place.forge.open_issues(place.repository, assignee="dev-bot")
        }
        assert by_label == {one} and two in by_assignee and not {one, closed} & by_assignee
        assert place.forge.open_issues(place.repository, label="nowhere-such") == []
        newest = place.forge.issue(IssueRef(place.repository, two)).updated
        assert (
            place.forge.open_issues(place.repository, label="sweep", since=newest + 3_600_000) == []
        )

    def test_repositories_by_pattern(self, place: Place) -> None:
        """Patterns match the repositories of the login. A plain name is used unchanged."""
        assert place.repository in place.forge.repositories(["shop/*"])
        assert place.forge.repositories(["none/*"]) == []
        assert place.forge.repositories(["far/away"]) == ["far/away"]

    def test_a_token_that_is_not_taken(self, place: Place) -> None:
        """A wrong token needs a person. The message names the place where the token is stored, but
        not the token."""
        with pytest.raises(ForgeDenied) as denied:
            place.with_token("b4d" * 14).whoami()
        assert (
            "variable" in str(denied.value) and "b4d" not in str(denied.value) + denied.value.hint
        )

    def test_what_is_not_allowed(self, place: Place) -> None:
        """A login without the permission gets an error: one that may only read cannot set a
        status."""
        commit = place.branch("not-yours")
        with pytest.raises((ForgeDenied, NotFound)):
            place.as_reader().set_status(place.repository, commit, CheckState.SUCCESS, context="x")
