"""How things stand on a forge now, as its API tells it: the nouns of `perdure.protocols.ForgeApi`,
the same for all forges.

All texts come from outside: bounded and checked as those of an intent are. Times in ms since 1970
by the forge's clock; 0: it did not say.
"""

from __future__ import annotations

from enum import StrEnum

from perdure.lateclass import dataclass


class Access(StrEnum):
    """What a login may do in a repository. `reaches` compares."""

    NONE = "none"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def reaches(self, least: Access) -> bool:
        """Whether it is as much as `least`, or more."""
        order = list(Access)
        return order.index(self) >= order.index(least)


class Reaction(StrEnum):
    """What every forge can put under an issue or a comment. Of these all but GitLab's names are the
    same."""

    EYES = "eyes"
    ROCKET = "rocket"
    HOORAY = "hooray"
    CONFUSED = "confused"
    HEART = "heart"
    UP = "+1"
    DOWN = "-1"


class CheckState(StrEnum):
    """How a commit was judged."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    """The check itself could not be made."""


class CommentKind(StrEnum):
    """Where a comment stands."""

    COMMENT = "comment"
    REVIEW = "review"
    """What a review says as a whole; `verdict` has what it comes to."""
    LINE = "line"
    """On a line of a change; `path` and `line` say which."""


class CheckVerdict(StrEnum):
    """What a review comes to."""

    APPROVED = "approved"
    CHANGES_REQUESTED = "changes_requested"
    COMMENTED = "commented"


@dataclass(frozen=True, slots=True)
class IssueRef:
    """An issue or a pull request (on GitLab a merge request) by its address. GitLab counts the two
    apart, the others together."""

    repository: str
    """`owner/name`, on GitLab with all groups."""
    number: int
    pull: bool = False

    def __str__(self) -> str:
        return f"{self.repository}#{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """An issue, or what a pull request has in common with one."""

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
    """Only members may read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull(Issue):
    """A pull request."""

    merged: bool
    draft: bool
    head: str
    """The branch that is to be merged, in `head_repository`."""
    head_commit: str
    head_repository: str
    """Another one than the pull request's: it comes from a fork. Empty: the fork is gone."""
    base: str
    reviewers: tuple[str, ...]
    """Who was asked for a review and has not given one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """Something that somebody said to an issue or a pull request."""

    id: str
    """Only for the calls of the same forge, and the same issue."""
    kind: CommentKind
    author: str
    text: str
    created: int
    updated: int
    url: str
    path: str = ""
    line: int = 0
    removed: bool = False
    """The line is one that the change removes."""
    hunk: str = ""
    """Of a line: the diff that it is on, as far as the forge tells."""
    review: str = ""
    """Of a line: the id of the review that it was said in, where the forge tells."""
    verdict: CheckVerdict | None = None
    confidential: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch that is there."""

    name: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitCheck:
    """One judgement of a commit, the newest of its name."""

    name: str
    state: CheckState
    text: str
    url: str
    updated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCheck:
    """A check of a commit that has failed, for who is to repair it."""

    name: str
    url: str = ""
    text: str = ""
    """What the check itself says."""
    log: str = ""
    """The end of its log, as the forge gave it: escapes and all."""
    note: str = ""
    """Why there is no log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDelivery:
    """A webhook that the forge sent and that was not taken. `hook` and `id` are for `redeliver`;
    `delivery` is what the receiver sees."""

    hook: str
    id: str
    delivery: str
    event: str
    at: int
