"""The nouns of this room: a delivery that arrived, and what somebody wants by it."""

from __future__ import annotations

from enum import StrEnum

from perdure.lateclass import dataclass


class Forge(StrEnum):
    """Where repositories, issues and pull requests live. Gitea and Forgejo differ in the names of
    headers and of some events."""

    GITHUB = "github"
    GITEA = "gitea"
    FORGEJO = "forgejo"
    GITLAB = "gitlab"


class IntentKind(StrEnum):
    """What happened, as far as work can follow from it."""

    OPENED = "opened"
    """An issue or pull request is new; `labels`, `whom` and `mentions` are what it was opened
    with."""
    ASSIGNED = "assigned"
    LABELLED = "labelled"
    REVIEW_REQUESTED = "review_requested"
    COMMENTED = "commented"
    LINE_COMMENTED = "line_commented"
    """A comment on a line of a change, or a review that only comments."""
    CHANGES_REQUESTED = "changes_requested"
    APPROVED = "approved"
    """A review that approves and says something."""
    EDITED = "edited"
    """The title or the description of an issue or pull request reads otherwise now."""
    COMMENT_EDITED = "comment_edited"
    UNASSIGNED = "unassigned"
    """`unassigned` says who; on Gitea and Forgejo `whom` are those who are left."""
    UNLABELLED = "unlabelled"
    """`unlabelled` says which; on Gitea and Forgejo `labels` are those that are left."""
    CI_FAILED = "ci_failed"
    MERGED = "merged"
    CLOSED = "closed"
    """Closed without a merge, deleted, or moved to another repository."""
    REOPENED = "reopened"
    BRANCH_DELETED = "branch_deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What somebody wants, or what happened, on a forge. All texts come from outside: bounded,
    valid Unicode without NUL, else untouched.

    What a payload does not say is empty (or 0). The state of the forge may have moved on: who acts
    asks it again.
    """

    kind: IntentKind
    forge: Forge
    repository: str
    """`owner/name`, on GitLab with all groups."""
    number: int = 0
    """Of the issue or pull request; 0 for a branch, and for a failed check that names none."""
    pull: bool = False
    """The number is a pull request's (a merge request's)."""
    author: str = ""
    """Who did it, by login."""
    whom: tuple[str, ...] = ()
    """Who was assigned or asked for a review. On Gitea and Forgejo all who are assigned now: they
    do not say who is new."""
    labels: tuple[str, ...] = ()
    """The labels that were put on; on Gitea and Forgejo all that are on."""
    mentions: tuple[str, ...] = ()
    """Logins that `text` mentions with an `@`."""
    title: str = ""
    description: str = ""
    """What the issue or pull request itself says."""
    text: str = ""
    """The comment, the review, or the description of what was opened; of a failed check its
    name."""
    branch: str = ""
    """The head branch of the pull request, the branch that was deleted, or the one that was
    checked."""
    commit: str = ""
    path: str = ""
    """Of a comment on a line of a change: the file, in the repository."""
    line: int = 0
    removed: bool = False
    """The line is one that the change removes: it is counted in the file as it was before."""
    hunk: str = ""
    """The end of the diff that the comment is on."""
    comment: str = ""
    """The forge's id of the comment or review."""
    before: str = ""
    """What `text` (or, of an issue, `description`) was before it was edited."""
    title_before: str = ""
    unassigned: tuple[str, ...] = ()
    """Who was unassigned, or is not asked for a review any more."""
    unlabelled: tuple[str, ...] = ()
    """Labels that were taken off."""
    stops: tuple[str, ...] = ()
    """Logins that `text` tells to stop."""
    rollup: bool = False
    """A failed check that sums up others (a suite, a workflow, a pipeline)."""
    confidential: bool = False
    """Only members may read it (GitLab's confidential issues and internal notes)."""
    url: str = ""
    """For a person: http(s), of the comment, the issue or the check."""
    clone_url: str = ""
    """http(s)."""
    at: int = 0
    """When the issue or pull request was changed last, as the forge saw it then (ms); 0: it did not
    say."""


@dataclass(frozen=True, slots=True)
class PayloadReading:
    """What a payload came to: an intent, or why it is of no interest, in a few words."""

    intent: Intent | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """An authentic delivery, ready to be kept. `id` is the forge's own, `sha256` that of the raw
    body (hexadecimal)."""

    source: str
    """The name that the configuration gives to where it comes from."""
    id: str
    forge: Forge
    event: str
    sha256: str
    body: str
    """Empty where it is not kept: nothing follows from it, and it is large."""
    reading: PayloadReading
    size: int = 0
    """Bytes of the raw body; 0: those of `body`."""


class DeliveryState(StrEnum):
    """What became of a delivery."""

    RECEIVED = "received"
    """It is kept, and what it wants is still to be done."""
    HANDLED = "handled"
    IGNORED = "ignored"
    """Nothing follows from it."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delivery as it stands in the inbox. Times in ms by the store's clock."""

    number: int
    """In the order in which they were accepted."""
    source: str
    id: str
    forge: Forge
    event: str
    sha256: str
    state: DeliveryState
    reason: str
    """Why it is ignored or failed, or what was done."""
    received: int
    updated: int
    times: int
    """How often it came."""
    size: int
    """Of the raw body, in bytes."""
    kept: bool
    """The body is still there."""
    intent: Intent | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer of the inbox: where a delivery stands in it, and whether it came for the first
    time."""

    number: int
    new: bool
