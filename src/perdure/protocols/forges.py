"""The seam to the forges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perdure.model.forge.state import (
        Access,
        Branch,
        CheckState,
        Comment,
        CommitCheck,
        FailedCheck,
        FailedDelivery,
        Issue,
        IssueRef,
        Pull,
        Reaction,
    )


class ForgeApi(Protocol):
    """A forge as one login sees it, by the REST API. From any thread. What is read is how things
    stand now, not how an event told it.

    Every call raises ForgeUnavailable (ask again, not before `retry_s`), ForgeDenied (the token: a
    person is needed), NotFound (no such repository, issue, commit; also what this login may not
    see) or ForgeRefused (it will never be done). Nothing is asked twice in a call, and a call ends
    within a minute. A repository is `owner/name`, on GitLab with all groups; anything else is
    NotFound.
    """

    @property
    def address(self) -> str:
        """Of the forge itself, for people: `https://git.example.com`, without a slash at its
        end."""
        ...

    def whoami(self) -> str:
        """The login that the token belongs to; asked once."""
        ...

    def repositories(self, patterns: Sequence[str]) -> Sequence[str]:
        """The repositories that this login works in and one of the patterns (fnmatch of
        `owner/name`) has, at most 1,000. A pattern without `*`, `?` and `[` is a name, and taken as
        it is."""
        ...

    def permission(self, repository: str, login: str) -> Access:
        """What a login may do there. A login that the forge does not know may do nothing."""
        ...

    def issue(self, ref: IssueRef) -> Issue:
        """An issue, or the part of a pull request that is like one."""
        ...

    def pull(self, repository: str, number: int) -> Pull: ...

    def open_issues(
        self, repository: str, *, label: str = "", assignee: str = "", since: int = 0
    ) -> Sequence[Issue]:
        """The open issues and pull requests that have this label, and this assignee, and were
        updated since (ms); at most 1,000."""
        ...

    def chosen_by(
        self, ref: IssueRef, *, label: str = "", assignee: str = "", reopened: bool = False
    ) -> str:
        """Who put this label on last, assigned this login, or opened it again; empty where that is
        not known (GitHub and GitLab are not asked)."""
        ...

    def comments(self, ref: IssueRef, *, since: int = 0) -> Sequence[Comment]:
        """What was said or changed since (ms), this login's own too, oldest first; of a pull
        request with its reviews and their lines."""
        ...

    def find_comment(self, ref: IssueRef, marker: str) -> Comment | None:
        """The oldest comment of this login's own that has this text in it."""
        ...

    def comment(self, ref: IssueRef, text: str) -> Comment: ...

    def edit_comment(self, ref: IssueRef, comment: Comment, text: str) -> Comment:
        """Changes one of this login's own comments. Raises NotFound where somebody has deleted
        it."""
        ...

    def react(self, ref: IssueRef, reaction: Reaction, comment: Comment | None = None) -> None:
        """Puts a reaction under the issue, or under one of its comments (not a review). Nothing
        happens where it is there."""
        ...

    def set_status(
        self,
        repository: str,
        commit: str,
        state: CheckState,
        *,
        context: str,
        text: str = "",
        url: str = "",
    ) -> None:
        """Says how a commit was judged, under a name. The newest of a name counts. The text is cut
        at 140 characters."""
        ...

    def checks(self, repository: str, commit: str) -> Sequence[CommitCheck]:
        """How a commit stands judged: the newest of each name."""
        ...

    def failed_checks(self, repository: str, commit: str) -> Sequence[FailedCheck]:
        """Return the checks of a commit that have failed, those of the first few with the end of
        their log. A log that cannot be had is no error: `note` says why."""
        ...

    def hunk(
        self, repository: str, number: int, path: str, line: int, *, removed: bool = False
    ) -> str:
        """Return the diff of a pull request around a line, to the line itself; empty where the
        forge tells it with the comment (all but GitLab), or has none."""
        ...

    def branch(self, repository: str, name: str) -> Branch | None:
        """A branch, or None where there is no such (any more). Raises NotFound for the
        repository."""
        ...

    def find_pull(self, repository: str, head: str) -> Pull | None:
        """The pull request of this branch of the same repository: the open one, else the newest."""
        ...

    def pull_at(self, repository: str, commit: str) -> Pull | None:
        """The open pull request whose branch stands at this commit."""
        ...

    def open_pull(
        self, repository: str, *, head: str, base: str, title: str, text: str, draft: bool = False
    ) -> Pull:
        """Opens a pull request, or returns the open one of this branch. Raises ForgeRefused where
        nothing is to be merged."""
        ...

    def failed_deliveries(
        self, repository: str, receiver: str, *, since: int
    ) -> Sequence[FailedDelivery] | None:
        """The webhooks that were sent since (ms) to an address that ends with `receiver`
        (`/webhooks/NAME`), and never taken (GitLab: in the last seven days). None: this forge does
        not tell (Gitea, Forgejo), or not to this login, or it has no such webhook."""
        ...

    def redeliver(self, repository: str, failed: FailedDelivery) -> None:
        """Has it sent again, under the same delivery id."""
        ...

    def close(self) -> None: ...
