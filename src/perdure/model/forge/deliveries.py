"""The nouns of the inbox: a delivery that arrived, and the intent in it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Forge(StrEnum):
    """A kind of forge. Gitea and Forgejo differ in the names of headers and of some events."""

    GITHUB = "github"
    GITEA = "gitea"
    FORGEJO = "forgejo"
    GITLAB = "gitlab"


class IntentKind(StrEnum):
    """Events that can lead to work."""

    OPENED = "opened"
    """An issue or pull request was opened, with these `labels`, `whom` and `mentions`."""
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
    """`unassigned` has the logins that were removed; on Gitea and Forgejo `whom` has those that are
    left."""
    UNLABELLED = "unlabelled"
    """`unlabelled` has the labels that were removed; on Gitea and Forgejo `labels` has those that
    are left."""
    CI_FAILED = "ci_failed"
    MERGED = "merged"
    CLOSED = "closed"
    """Closed without a merge, deleted, or moved to another repository."""
    REOPENED = "reopened"
    BRANCH_DELETED = "branch_deleted"


class Intent(Struct, frozen=True, kw_only=True):
    """A request or an event on a forge. All texts come from outside. They are limited in length and
    valid Unicode without NUL, but otherwise unchanged.

    A field that is missing in the payload is empty (or 0). The state of the forge may have changed
    since, so ask the forge before acting on an intent.
    """

    kind: IntentKind
    forge: Forge
    repository: str
    """`owner/name`, on GitLab with all groups."""
    number: int = 0
    """The number of the issue or pull request; 0 for a branch, and for a failed check that names
    none."""
    pull: bool = False
    """Whether the number is that of a pull request (on GitLab, a merge request)."""
    author: str = ""
    """The login that caused the event."""
    whom: tuple[str, ...] = ()
    """The logins that were assigned or asked for a review. On Gitea and Forgejo these are all
    current ones, because these forges do not say which are new."""
    labels: tuple[str, ...] = ()
    """The labels that were added; on Gitea and Forgejo all current ones."""
    mentions: tuple[str, ...] = ()
    """Logins that `text` mentions with an `@`."""
    title: str = ""
    description: str = ""
    """The description of the issue or pull request."""
    text: str = ""
    """The text of the comment or review, or the description of the new issue or pull request; for a
    failed check, its name."""
    branch: str = ""
    """The head branch of the pull request, the branch that was deleted, or the one that was
    checked."""
    commit: str = ""
    path: str = ""
    """For a comment on a line of a change: the file's path in the repository."""
    line: int = 0
    removed: bool = False
    """Whether the change removes the line. The line number is then that in the old file."""
    hunk: str = ""
    """The last lines of the diff hunk that the comment is on."""
    comment: str = ""
    """The forge's id of the comment or review."""
    before: str = ""
    """The previous `text` (for an issue, the previous `description`), if it was edited."""
    title_before: str = ""
    unassigned: tuple[str, ...] = ()
    """The logins that were unassigned, or are no longer asked for a review."""
    unlabelled: tuple[str, ...] = ()
    """The labels that were removed."""
    stops: tuple[str, ...] = ()
    """The logins that `text` tells to stop."""
    rollup: bool = False
    """Whether the failed check sums up others (a suite, a workflow, a pipeline)."""
    confidential: bool = False
    """Whether only members may read the issue or the note (GitLab's confidential issues and
    internal notes)."""
    url: str = ""
    """The http(s) address of the comment, the issue or the check, for people."""
    clone_url: str = ""
    """The http(s) address for cloning."""
    at: int = 0
    """When the issue or pull request was last changed, by the payload (ms); 0: not reported."""


class PayloadReading(Struct, frozen=True):
    """The result of reading a payload: an intent, or in a few words why there is none."""

    intent: Intent | None
    reason: str = ""


class Arrived(Struct, frozen=True, kw_only=True):
    """An authenticated delivery, ready to be stored. `id` is the forge's id, `sha256` that of the
    raw body (hexadecimal)."""

    source: str
    """The name of the source in the configuration."""
    id: str
    forge: Forge
    event: str
    sha256: str
    body: str
    """The raw body. Empty if it is not stored, because it is large and nothing follows from it."""
    reading: PayloadReading
    size: int = 0
    """Size of the raw body in bytes; 0: the size of `body`."""


class DeliveryState(StrEnum):
    """The state of a delivery in the inbox."""

    RECEIVED = "received"
    """The delivery is stored, and its intent is still to be handled."""
    HANDLED = "handled"
    IGNORED = "ignored"
    """Nothing follows from the delivery."""
    FAILED = "failed"


class Delivery(Struct, frozen=True, kw_only=True):
    """A delivery in the inbox. Times in ms by the store's clock."""

    number: int
    """Number of the delivery, in the order of acceptance."""
    source: str
    id: str
    forge: Forge
    event: str
    sha256: str
    state: DeliveryState
    reason: str
    """Why the delivery is ignored or failed, or how it was handled."""
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
