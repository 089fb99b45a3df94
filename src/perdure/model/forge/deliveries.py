"""Data types of the inbox: a delivery from a forge, and the intent that it contains."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Forge(StrEnum):
    """The software of a forge. Gitea and Forgejo differ in the names of headers and of some
    events."""

    GITHUB = "github"
    GITEA = "gitea"
    FORGEJO = "forgejo"
    GITLAB = "gitlab"


class IntentKind(StrEnum):
    """Kinds of intents: what happened on the forge."""

    OPENED = "opened"
    """An issue or pull request was opened. The intent's `labels`, `whom` and `mentions` are set."""
    ASSIGNED = "assigned"
    LABELLED = "labelled"
    REVIEW_REQUESTED = "review_requested"
    COMMENTED = "commented"
    LINE_COMMENTED = "line_commented"
    """A comment on a line of a change, or a review that only comments."""
    CHANGES_REQUESTED = "changes_requested"
    APPROVED = "approved"
    """A review that approves and contains text."""
    EDITED = "edited"
    """The title or the description of an issue or pull request was changed."""
    COMMENT_EDITED = "comment_edited"
    UNASSIGNED = "unassigned"
    """`unassigned` has the logins that were removed. On Gitea and Forgejo, `whom` has the remaining
    ones."""
    UNLABELLED = "unlabelled"
    """`unlabelled` has the labels that were removed. On Gitea and Forgejo, `labels` has the
    remaining ones."""
    CI_FAILED = "ci_failed"
    MERGED = "merged"
    CLOSED = "closed"
    """Closed without a merge, deleted, or moved to another repository."""
    REOPENED = "reopened"
    BRANCH_DELETED = "branch_deleted"


class Intent(Struct, frozen=True, kw_only=True):
    """A request or an event on a forge, in a form that is the same for all forges. All texts come
    from outside: their length is limited and they are valid Unicode without NUL, but otherwise
    unchanged.

    A field that is missing in the payload is empty (or 0). The state of the forge may have changed
    since the delivery, so ask the forge before acting on an intent.
    """

    kind: IntentKind
    forge: Forge
    repository: str
    """`owner/name`; on GitLab the full path including all groups."""
    number: int = 0
    """Number of the issue or pull request; 0 for a branch, and for a failed check without a pull
    request."""
    pull: bool = False
    """Whether `number` belongs to a pull request (on GitLab, a merge request)."""
    author: str = ""
    """The login that caused the event."""
    whom: tuple[str, ...] = ()
    """Logins that were assigned, or asked for a review. On Gitea and Forgejo: all current ones,
    because these forges do not report which are new."""
    labels: tuple[str, ...] = ()
    """Labels that were added. On Gitea and Forgejo: all current labels."""
    mentions: tuple[str, ...] = ()
    """Logins that `text` mentions with an `@`."""
    title: str = ""
    description: str = ""
    """The description of the issue or pull request."""
    text: str = ""
    """Text of the comment or review. For a new issue or pull request: its description. For a failed
    check: its name."""
    branch: str = ""
    """Name of the branch that the event is about: the pull request's head branch, the deleted
    branch, or the branch that was checked."""
    commit: str = ""
    path: str = ""
    """For a comment on a line of a change: the file's path in the repository."""
    line: int = 0
    removed: bool = False
    """Whether the change removed the commented line. `line` is then its number in the old version
    of the file."""
    hunk: str = ""
    """The last lines of the diff hunk that the comment is on."""
    comment: str = ""
    """The forge's id of the comment or review."""
    before: str = ""
    """Text before an edit: the previous `text`; for an issue, the previous `description`."""
    title_before: str = ""
    unassigned: tuple[str, ...] = ()
    """Logins that were unassigned, or whose request for a review was withdrawn."""
    unlabelled: tuple[str, ...] = ()
    """The labels that were removed."""
    stops: tuple[str, ...] = ()
    """Logins that the comment (`text`) tells to stop."""
    rollup: bool = False
    """Whether the failed check summarizes other checks (a suite, a workflow, a pipeline)."""
    confidential: bool = False
    """Whether only members may read the issue or the note (GitLab's confidential issues and
    internal notes)."""
    url: str = ""
    """The http(s) address of the page of the comment, the issue or the check."""
    clone_url: str = ""
    """The http(s) address for cloning the repository."""
    at: int = 0
    """Time of the last change of the issue or pull request, from the payload (ms); 0: not
    reported."""


class PayloadReading(Struct, frozen=True):
    """The result of reading a payload: an intent, or a short reason why there is none."""

    intent: Intent | None
    reason: str = ""


class Arrived(Struct, frozen=True, kw_only=True):
    """An authenticated delivery before it is stored. `id` is the forge's id of the delivery.
    `sha256` is the hash of the raw body in hexadecimal."""

    source: str
    """The name of the source in the configuration."""
    id: str
    forge: Forge
    event: str
    sha256: str
    body: str
    """The raw body. Empty if it is not stored, because it is large and leads to no work."""
    reading: PayloadReading
    size: int = 0
    """Size of the raw body in bytes. 0 means the size of `body`."""


class DeliveryState(StrEnum):
    """The state of a delivery in the inbox."""

    RECEIVED = "received"
    """The delivery is stored, and its intent has to be handled."""
    HANDLED = "handled"
    IGNORED = "ignored"
    """The delivery leads to no work."""
    FAILED = "failed"


class Delivery(Struct, frozen=True, kw_only=True):
    """A delivery in the inbox. Times are in ms, by the store's clock."""

    number: int
    """Number of the delivery. Deliveries are numbered in the order in which they were accepted."""
    source: str
    id: str
    forge: Forge
    event: str
    sha256: str
    state: DeliveryState
    reason: str
    """Why the delivery was ignored or failed, or how it was handled."""
    received: int
    updated: int
    times: int
    """Number of times that the delivery arrived."""
    size: int
    """Size of the raw body, in bytes."""
    kept: bool
    """Whether the body is still stored."""
    intent: Intent | None


class Accepted(Struct, frozen=True):
    """The result of accepting a delivery: its number in the inbox, and whether it is new."""

    number: int
    new: bool
