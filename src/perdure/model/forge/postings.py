"""The record of reports to a forge about a run: those that were made, and those that are still to
be made. Pure. The store keeps it; only `replies` writes it."""

from __future__ import annotations

from msgspec import Struct

from perdure.model import TaskRun


class Posting(Struct, frozen=True, kw_only=True):
    """The posting of a run that a delivery began, one for each such run. Times in ms by the store's
    clock."""

    run: str
    seen: int = 0
    """The time up to which the run's changes are shown on the forge, as far as possible."""
    due: int = 0
    """The earliest time of the next try."""
    tries: int = 0
    """Number of failed tries in a row; 0: nothing waits."""
    reason: str = ""
    """The step that could not be done, and why."""
    comment: str = ""
    """The id of perdure's comment on the issue, and its address."""
    comment_url: str = ""
    said: str = ""
    """The digest of that comment's text."""
    called: str = ""
    """The digest of the last request for help, for which a person was called in a separate
    comment."""
    reaction: str = ""
    """The newest reaction that was added to the issue."""
    attempt: int = 0
    """The newest attempt whose work was published."""
    commit: str = ""
    """The commit that the branch was pushed at; empty: there was nothing new to push."""
    status: str = ""
    """The newest status that was set, as `commit state`."""
    pull: int = 0
    """The number of the pull request, and its address."""
    pull_url: str = ""
    updated: int = 0


class Origin(Struct, frozen=True, kw_only=True):
    """The origin of a run according to its labels: the source, the rule, and the issue or pull
    request."""

    source: str
    rule: str
    repository: str
    number: int
    pull: bool = False
    """Whether the number is that of a pull request. The run was then not begun for an issue."""


def labels_of(delivery: int, origin: Origin) -> dict[str, str]:
    """Return the labels of a run that a delivery began. `origin_of` reads them."""
    found = {
        "delivery": str(delivery),
        "source": origin.source,
        "issue": f"{origin.repository}#{origin.number}",
        "agent": origin.rule,
    }
    return found | ({"pull": "yes"} if origin.pull else {})


def origin_of(run: TaskRun) -> Origin | None:
    """Return the origin of a run; None if a person began it."""
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
