"""What a forge was told of a run, and how far that has come. Pure; kept by the store, written by
`replies` alone."""

from __future__ import annotations

from perdure.lateclass import dataclass
from perdure.model import TaskRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One for each run that a delivery began. Times in ms by the store's clock."""

    run: str
    seen: int = 0
    """The run as it was at this time stands on the forge, as far as it can."""
    due: int = 0
    """Nothing is tried before."""
    tries: int = 0
    """How often in a row something could not be done; 0: nothing waits."""
    reason: str = ""
    """What could not be done, and why."""
    comment: str = ""
    """The id of the sticky comment, and where it is to be seen."""
    comment_url: str = ""
    said: str = ""
    """The digest of what stands in it."""
    reaction: str = ""
    """The newest that was put under the issue."""
    attempt: int = 0
    """The newest attempt whose work was brought out."""
    commit: str = ""
    """What the branch was pushed as; empty: it had nothing new."""
    status: str = ""
    """The newest status, as `commit state`."""
    pull: int = 0
    """The pull request's number, and where it is to be seen."""
    pull_url: str = ""
    updated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run came from, by its labels: the source, the rule, and the issue or pull request."""

    source: str
    rule: str
    repository: str
    number: int
    pull: bool = False
    """The number is a pull request's: it was not begun for an issue."""


def labels_of(delivery: int, origin: Origin) -> dict[str, str]:
    """The labels of a run that a delivery began; `origin_of` reads them."""
    found = {
        "delivery": str(delivery),
        "source": origin.source,
        "issue": f"{origin.repository}#{origin.number}",
        "agent": origin.rule,
    }
    return found | ({"pull": "yes"} if origin.pull else {})


def origin_of(run: TaskRun) -> Origin | None:
    """Where a run came from, or None for one that a person began."""
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
