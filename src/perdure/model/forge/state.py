"""The current state of things on a forge, as its API returns it: the nouns of
`perdure.protocols.ForgeApi`, the same for all forges.

All texts come from outside, and are limited and checked like those of an intent. Times are in ms
since 1970 by the forge's clock; 0: not reported.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Access(StrEnum):
    """A login's access to a repository. `reaches` compares two of these."""

    NONE = "none"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def reaches(self, least: Access) -> bool:
        """Return whether this access is at least `least`."""
        order = list(Access)
        return order.index(self) >= order.index(least)


class Reaction(StrEnum):
    """The reactions that every forge has. Their names are the same on all forges except GitLab."""

    EYES = "eyes"
    ROCKET = "rocket"
    HOORAY = "hooray"
    CONFUSED = "confused"
    HEART = "heart"
    UP = "+1"
    DOWN = "-1"


class CheckState(StrEnum):
    """The state of a commit's check."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    """The check itself could not be run."""


class CommentKind(StrEnum):
    """Where a comment was made."""

    COMMENT = "comment"
    REVIEW = "review"
    """The text of a review as a whole; `verdict` has its result."""
    LINE = "line"
    """On a line of a change, given by `path` and `line`."""


class CheckVerdict(StrEnum):
    """The result of a review."""

    APPROVED = "approved"
    CHANGES_REQUESTED = "changes_requested"
    COMMENTED = "commented"


class IssueRef(Struct, frozen=True):
    """The address of an issue or a pull request (on GitLab a merge request). GitLab numbers the two
    separately, the others together."""

    repository: str
    """`owner/name`, on GitLab with all groups."""
    number: int
    pull: bool = False

    def __str__(self) -> str:
        return f"{self.repository}#{self.number}"


class Issue(Struct, frozen=True, kw_only=True):
    """An issue, or the part that a pull request has in common with one."""

    ref: IssueRef
    title: str
    text: str
    author: str
    open: bool
    labels: tuple[str, ...]
    assignees: tuple[str, ...]
    created: int
    updated: int
    url: str
    confidential: bool = False
    """Whether only members may read the issue."""


class Pull(Issue, frozen=True, kw_only=True):
    """A pull request."""

    merged: bool
    draft: bool
    head: str
    """The branch to be merged, in `head_repository`."""
    head_commit: str
    head_repository: str
    """The repository of the branch. It differs from the pull request's repository if the branch is
    in a fork. Empty: the fork was deleted."""
    base: str
    reviewers: tuple[str, ...]
    """The logins that were asked for a review and have not given one."""


class Comment(Struct, frozen=True, kw_only=True):
    """A comment on an issue or a pull request."""

    id: str
    """Id of the comment. Valid only in calls to the same forge, for the same issue."""
    kind: CommentKind
    author: str
    text: str
    created: int
    updated: int
    url: str
    path: str = ""
    line: int = 0
    removed: bool = False
    """Whether the change removes the line."""
    hunk: str = ""
    """For a line comment: the diff hunk, as far as the forge returns it."""
    review: str = ""
    """For a line comment: the id of its review, if the forge returns it."""
    verdict: CheckVerdict | None = None
    confidential: bool = False


class Branch(Struct, frozen=True):
    """An existing branch."""

    name: str
    commit: str


class CommitCheck(Struct, frozen=True, kw_only=True):
    """One status or check of a commit, the newest of its name."""

    name: str
    state: CheckState
    text: str
    url: str
    updated: int


class FailedCheck(Struct, frozen=True, kw_only=True):
    """A failed check of a commit, with what is needed to repair it."""

    name: str
    url: str = ""
    text: str = ""
    """The check's own text."""
    log: str = ""
    """The end of its log as the forge returned it, including escape sequences."""
    note: str = ""
    """Why there is no log."""


class FailedDelivery(Struct, frozen=True, kw_only=True):
    """A webhook that the forge sent and that was not accepted. `hook` and `id` are for `redeliver`;
    `delivery` is the id that the receiver sees."""

    hook: str
    id: str
    delivery: str
    event: str
    at: int
