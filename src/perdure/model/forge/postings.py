"""The record of reports to a forge about a run: those that were made, and those that still have to
be made. The store keeps it, and only `replies` changes it."""

from __future__ import annotations

from msgspec import Struct

from perdure.model import TaskRun


class Posting(Struct, frozen=True, kw_only=True):
    """The state of the reports about one run. Each run that a delivery started has one posting.
    Times are in ms, by the store's clock."""

    run: str
    seen: int = 0
    """Time up to which the run's changes were handled. Each of them was reported to the forge, or
    its report failed (see `reason`)."""
    due: int = 0
    """Earliest time of the next try to report."""
    tries: int = 0
    """Number of consecutive failed tries to report; 0: no retry is pending."""
    reason: str = ""
    """The failed steps of the latest report, each with its cause."""
    comment: str = ""
    """Id of perdure's comment on the issue. `comment_url` is the comment's address."""
    comment_url: str = ""
    said: str = ""
    """Digest of the text of perdure's comment. It shows whether the comment has to be changed."""
    called: str = ""
    """Digest of the last request for a person's help, which was made in a separate comment."""
    reaction: str = ""
    """Newest reaction that perdure added to the issue."""
    attempt: int = 0
    """Number of the newest attempt whose work was published."""
    commit: str = ""
    """Commit of the branch that was pushed; empty if there was nothing new to push."""
    status: str = ""
    """Newest commit status that perdure set, as `COMMIT STATE`."""
    pull: int = 0
    """Number of the pull request. `pull_url` is its address."""
    pull_url: str = ""
    updated: int = 0


class Origin(Struct, frozen=True, kw_only=True):
    """The issue or pull request for which a delivery started a run, with the source and the rule.
    Stored in the run's labels."""

    source: str
    rule: str
    repository: str
    number: int
    pull: bool = False
    """Whether `number` belongs to a pull request instead of an issue."""


def labels_of(delivery: int, origin: Origin) -> dict[str, str]:
    """Return the labels for a run that a delivery started. `origin_of` reads them back."""
    found = {
        "delivery": str(delivery),
        "source": origin.source,
        "issue": f"{origin.repository}#{origin.number}",
        "agent": origin.rule,
    }
    return found | ({"pull": "yes"} if origin.pull else {})


OWN_LABELS = frozenset(
    labels_of(1, Origin(source="s", rule="r", repository="a/b", number=1, pull=True))
)
"""Labels that perdure itself sets on a run. They say where the task came from and where to reply.
"""


def origin_of(run: TaskRun) -> Origin | None:
    """Return the origin of a run from its labels; None if no delivery started the run."""
    labels = run.spec.labels
    repository, _, number = labels.get("issue", "").rpartition("#")
    if (
        "delivery" not in labels
        or not labels.get("source")
        or not repository
        or not (number.isascii() and number.isdecimal())
    ):
        return None
    return Origin(
        source=labels["source"],
        rule=labels.get("agent", ""),
        repository=repository,
        number=int(number),
        pull="pull" in labels,
    )
