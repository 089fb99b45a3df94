"""The interface to a forge's REST API. `perdure.forge.clients` implements it."""

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
    """A forge as one login sees it, through the REST API. May be used from any thread. Reads return
    the current state, which may be newer than an event.

    Every call may raise one of these errors:

    - ForgeUnavailable: try again, not before `retry_s`.
    - ForgeDenied: the token is the problem, so a person is needed.
    - NotFound: the repository, issue or commit does not exist, or this login may not see it.
    - ForgeRefused: the forge will never accept the call.

    No call retries by itself, and every call ends within a minute. A repository is `owner/name`, on
    GitLab with all groups; any other name raises NotFound.
    """

    @property
    def address(self) -> str:
        """Address of the forge as people open it, without a final slash:
        `https://git.example.com`."""
        ...

    @property
    def command_prefix(self) -> str:
        """Prefix of a command to perdure in a comment on this forge: `/`, or `/perdure ` if the
        forge itself has commands of the same names."""
        ...

    def whoami(self) -> str:
        """Return the login to which the token belongs. The answer of the forge is cached."""
        ...

    def repositories(self, patterns: Sequence[str]) -> Sequence[str]:
        """Return the repositories of this login that match one of the patterns (fnmatch of
        `owner/name`), at most 1,000. A pattern without `*`, `?` and `[` is a name, and is returned
        without asking the forge."""
        ...

    def permission(self, repository: str, login: str) -> Access:
        """Return the access level of a login in the repository; `none` for an unknown login."""
        ...

    def issue(self, ref: IssueRef) -> Issue:
        """Return an issue. For a pull request, return the fields that it shares with issues."""
        ...

    def pull(self, repository: str, number: int) -> Pull: ...

    def open_issues(
        self, repository: str, *, label: str = "", assignee: str = "", since: int = 0
    ) -> Sequence[Issue]:
        """Return the open issues and pull requests that were updated since a time (ms), at most
        1,000. If a label or an assignee is given, return only those that have it."""
        ...

    def chosen_by(
        self, ref: IssueRef, *, label: str = "", assignee: str = "", reopened: bool = False
    ) -> str:
        """Return the login that last added this label, assigned this login, or reopened the issue;
        empty if unknown. For GitHub and GitLab the result is always empty, and no call is made."""
        ...

    def comments(self, ref: IssueRef, *, since: int = 0) -> Sequence[Comment]:
        """Return the comments that were made or changed since a time (ms), oldest first. This
        login's own comments are included. For a pull request, the reviews and their comments on
        lines are included too."""
        ...

    def find_comment(self, ref: IssueRef, marker: str) -> Comment | None:
        """Return the oldest comment of this login in which a line begins with `marker`; None if
        there is none. A quoted marker does not count."""
        ...

    def comment(self, ref: IssueRef, text: str) -> Comment: ...

    def edit_comment(self, ref: IssueRef, comment: Comment, text: str) -> Comment:
        """Change one of this login's own comments. Raises NotFound if it was deleted."""
        ...

    def react(self, ref: IssueRef, reaction: Reaction, comment: Comment | None = None) -> None:
        """Add a reaction to the issue, or to one of its comments (but not to a review). Does
        nothing if the reaction exists already."""
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
        """Set the status of a commit under the name `context`. A new status replaces the earlier
        one of the same name. `text` is cut to 140 characters."""
        ...

    def checks(self, repository: str, commit: str) -> Sequence[CommitCheck]:
        """Return the statuses and check results of a commit, only the newest of each name."""
        ...

    def failed_checks(self, repository: str, commit: str) -> Sequence[FailedCheck]:
        """Return the failed checks of a commit. The first few include the end of their log. If a
        log cannot be fetched, `note` gives the reason, and no error is raised."""
        ...

    def hunk(
        self, repository: str, number: int, path: str, line: int, *, removed: bool = False
    ) -> str:
        """Return the part of a pull request's diff that precedes and includes a line. With
        `removed`, `line` is a number in the old file. Empty if there is no such part. Also empty
        for all forges but GitLab, because the others send that part with the comment."""
        ...

    def branch(self, repository: str, name: str) -> Branch | None:
        """Return a branch, or None if it does not exist. Raises NotFound if the repository does not
        exist."""
        ...

    def find_pull(self, repository: str, head: str) -> Pull | None:
        """Return the pull request that would merge this branch of the same repository: the open one
        if there is one, otherwise the newest. None if the branch has none."""
        ...

    def pull_at(self, repository: str, commit: str) -> Pull | None:
        """Return the open pull request whose branch is at this commit; None if there is none."""
        ...

    def open_pull(
        self, repository: str, *, head: str, base: str, title: str, text: str, draft: bool = False
    ) -> Pull:
        """Open a pull request, or return the open one of this branch. Raises ForgeRefused if there
        are no commits to merge."""
        ...

    def failed_deliveries(
        self, repository: str, receiver: str, *, since: int
    ) -> Sequence[FailedDelivery] | None:
        """Return the webhooks that the forge sent since a time (ms) to an address ending with
        `receiver` (`/webhooks/NAME`), and that were never accepted. GitLab reports only the last
        seven days. Returns None if the forge does not report failed webhooks (Gitea, Forgejo), does
        not report them to this login, or has no such webhook."""
        ...

    def redeliver(self, repository: str, failed: FailedDelivery) -> None:
        """Ask the forge to send a delivery again, with the same delivery id."""
        ...

    def close(self) -> None: ...
