"""Data types for the current state of a forge, as its API returns it: the types of
`perdure.protocols.ForgeApi`, the same for all forges.

All texts come from outside. They are limited and checked like those of an intent. Times are in ms
since 1970, by the forge's clock; 0: not reported.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Access(StrEnum):
    """A login's access to a repository, from the lowest to the highest."""

    NONE = "none"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def reaches(self, least: Access) -> bool:
        """Return whether this access is at least `least`."""
        order = list(Access)
        return order.index(self) >= order.index(least)


class Reaction(StrEnum):
    """The reactions that every forge supports. The values are the forges' own names, except on
    GitLab."""

    EYES = "eyes"
    ROCKET = "rocket"
    HOORAY = "hooray"
    CONFUSED = "confused"
    HEART = "heart"
    UP = "+1"
    DOWN = "-1"


class CheckState(StrEnum):
    """The state of a check of a commit."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    """The check itself failed to run."""


class CommentKind(StrEnum):
    """The kind of a comment on a forge."""

    COMMENT = "comment"
    REVIEW = "review"
    """The text of a whole review. `verdict` has the review's result."""
    LINE = "line"
    """A comment on a line of a change. `path` and `line` say which line."""


class CheckVerdict(StrEnum):
    """The result of a review."""

    APPROVED = "approved"
    CHANGES_REQUESTED = "changes_requested"
    COMMENTED = "commented"


class IssueRef(Struct, frozen=True):
    """The repository and number of an issue or a pull request (on GitLab a merge request). GitLab
    numbers issues and merge requests separately; the other forges number them together."""

    repository: str
    """`owner/name`; on GitLab the full path including all groups."""
    number: int
    pull: bool = False

    def __str__(self) -> str:
        return f"{self.repository}#{self.number}"


class Issue(Struct, frozen=True, kw_only=True):
    """An issue on a forge. A pull request (`Pull`) has the same fields and more."""

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
    closed: int = 0
    """Time at which the issue or pull request was closed, or merged; 0 while it is open."""


class Pull(Issue, frozen=True, kw_only=True):
    """A pull request."""

    merged: bool
    draft: bool
    head: str
    """Name of the branch to be merged, which is in `head_repository`."""
    head_commit: str
    head_repository: str
    """Repository of the head branch. It differs from the pull request's repository if the branch is
    in a fork. Empty if the fork was deleted."""
    base: str
    reviewers: tuple[str, ...]
    """Logins that were asked for a review and have not given it yet."""


class Comment(Struct, frozen=True, kw_only=True):
    """A comment on an issue or a pull request."""

    id: str
    """Id of the comment. It can be used only in calls to the same forge about the same issue."""
    kind: CommentKind
    author: str
    text: str
    created: int
    updated: int
    url: str
    path: str = ""
    line: int = 0
    removed: bool = False
    """Whether the commented line was removed by the change."""
    hunk: str = ""
    """For a comment on a line: the diff hunk, if the forge returns it."""
    review: str = ""
    """For a comment on a line: the id of its review, if the forge returns it."""
    verdict: CheckVerdict | None = None
    confidential: bool = False


class Branch(Struct, frozen=True):
    """A branch and its commit."""

    name: str
    commit: str


class CommitCheck(Struct, frozen=True, kw_only=True):
    """A status or check of a commit. If several have the same name, this is the newest one."""

    name: str
    state: CheckState
    text: str
    url: str
    updated: int


class FailedCheck(Struct, frozen=True, kw_only=True):
    """A failed check of a commit, with the text and log that help to fix the failure."""

    name: str
    url: str = ""
    text: str = ""
    """Text that the check itself published."""
    log: str = ""
    """End of the check's log as the forge returned it, including escape sequences."""
    note: str = ""
    """Reason why there is no log; empty if there is one."""


class FailedDelivery(Struct, frozen=True, kw_only=True):
    """A webhook delivery that the forge sent and that the receiver did not accept. `hook` and `id`
    are arguments for `redeliver`. `delivery` is the id that the receiver sees."""

    hook: str
    id: str
    delivery: str
    event: str
    at: int
