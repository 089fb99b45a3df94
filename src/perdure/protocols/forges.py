"""The interface to the forges."""

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
    """A forge as one login sees it, through the REST API. Usable from any thread. Reads return the
    current state, which may be newer than an event.

    Every call raises ForgeUnavailable (ask again, not before `retry_s`), ForgeDenied (a problem of
    the token: a person is needed), NotFound (the repository, issue or commit does not exist, or
    this login may not see it) or ForgeRefused (the forge will never accept the call). No call
    repeats a request, and every call ends within a minute. A repository is `owner/name`, on GitLab
    with all groups; anything else is NotFound.
    """

    @property
    def address(self) -> str:
        """The address of the forge itself, for people: `https://git.example.com`, without a slash
        at the end."""
        ...

    @property
    def command_prefix(self) -> str:
        """The beginning of a command to perdure in a comment on this forge: `/`, or `/perdure ` if
        the forge has some commands of the same names itself."""
        ...

    def whoami(self) -> str:
        """Return the login that the token belongs to. The forge is asked once."""
        ...

    def repositories(self, patterns: Sequence[str]) -> Sequence[str]:
        """Return the repositories of this login that match one of the patterns (fnmatch of
        `owner/name`), at most 1,000. A pattern without `*`, `?` and `[` is a name, and is returned
        unchecked."""
        ...

    def permission(self, repository: str, login: str) -> Access:
        """Return the permissions of a login in the repository. An unknown login has no
        permissions."""
        ...

    def issue(self, ref: IssueRef) -> Issue:
        """Return an issue, or the issue part of a pull request."""
        ...

    def pull(self, repository: str, number: int) -> Pull: ...

    def open_issues(
        self, repository: str, *, label: str = "", assignee: str = "", since: int = 0
    ) -> Sequence[Issue]:
        """Return the open issues and pull requests with this label and this assignee that were
        updated since a time (ms); at most 1,000."""
        ...

    def chosen_by(
        self, ref: IssueRef, *, label: str = "", assignee: str = "", reopened: bool = False
    ) -> str:
        """Return the login that last added this label, assigned this login, or reopened the issue.
        Empty if that is unknown. GitHub and GitLab are not asked, so for them the result is always
        empty."""
        ...

    def comments(self, ref: IssueRef, *, since: int = 0) -> Sequence[Comment]:
        """Return the comments that were made or changed since a time (ms), including this login's
        own, oldest first. A pull request includes its reviews and their line comments."""
        ...

    def find_comment(self, ref: IssueRef, marker: str) -> Comment | None:
        """Return the oldest comment of this login that contains this text; None if there is
        none."""
        ...

    def comment(self, ref: IssueRef, text: str) -> Comment: ...

    def edit_comment(self, ref: IssueRef, comment: Comment, text: str) -> Comment:
        """Change one of this login's own comments. Raises NotFound if it was deleted."""
        ...

    def react(self, ref: IssueRef, reaction: Reaction, comment: Comment | None = None) -> None:
        """Add a reaction to the issue, or to one of its comments (not a review). Does nothing if
        the reaction is already there."""
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
        """Set the status of a commit under a name (`context`). A new status replaces the earlier
        one of the same name. The text is cut at 140 characters."""
        ...

    def checks(self, repository: str, commit: str) -> Sequence[CommitCheck]:
        """Return the status and check results of a commit, the newest of each name."""
        ...

    def failed_checks(self, repository: str, commit: str) -> Sequence[FailedCheck]:
        """Return the failed checks of a commit. The first few have the end of their log. A log that
        cannot be fetched is no error: `note` says why."""
        ...

    def hunk(
        self, repository: str, number: int, path: str, line: int, *, removed: bool = False
    ) -> str:
        """Return the diff of a pull request around a line, up to that line. Empty if the forge
        sends the diff with the comment (all but GitLab), or has none."""
        ...

    def branch(self, repository: str, name: str) -> Branch | None:
        """Return a branch, or None if it does not exist. Raises NotFound if the repository does not
        exist."""
        ...

    def find_pull(self, repository: str, head: str) -> Pull | None:
        """Return the pull request of this branch of the same repository: the open one, else the
        newest."""
        ...

    def pull_at(self, repository: str, commit: str) -> Pull | None:
        """Return the open pull request whose branch is at this commit."""
        ...

    def open_pull(
        self, repository: str, *, head: str, base: str, title: str, text: str, draft: bool = False
    ) -> Pull:
        """Open a pull request, or return the open one of this branch. Raises ForgeRefused if there
        is nothing to merge."""
        ...

    def failed_deliveries(
        self, repository: str, receiver: str, *, since: int
    ) -> Sequence[FailedDelivery] | None:
        """Return the webhooks since a time (ms) that the forge sent to an address ending with
        `receiver` (`/webhooks/NAME`), and that were never accepted (GitLab: in the last seven
        days). None if the forge does not report them (Gitea, Forgejo), does not report them to this
        login, or has no such webhook."""
        ...

    def redeliver(self, repository: str, failed: FailedDelivery) -> None:
        """Ask the forge to send a delivery again, under the same delivery id."""
        ...

    def close(self) -> None: ...
