"""The interfaces of two components that follow runs: the publisher, which uploads checkpoints to a
checkpoint store, and the observers of the journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from perdure.model import Checkpoint, Claim, TaskRun

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent, Record


class Publisher(Protocol):
    """Uploads checkpoints so that other machines can find them, and reports when another machine
    has taken over a run."""

    def refused(self, run: TaskRun) -> str:
        """Return the reason why no attempt of the run may start on this machine, as a sentence.
        Empty if an attempt may start, or if that is not known."""
        ...

    def available(self, run: TaskRun) -> str:
        """Return the reason why this run cannot be fetched from the host that has its files; empty
        if it can be fetched."""
        ...

    def fetch(self, claim: Claim) -> TaskRun:
        """Download the workdir and conversation of a claimed run, as another host published them,
        and return the run. Raises PerdureError."""
        ...

    def published(self, checkpoint: Checkpoint) -> None:
        """Queue the upload of a checkpoint that is already in the local store, without waiting for
        it. If several checkpoints of a run are queued, only the newest is uploaded."""
        ...

    def take_events(self, run_id: str) -> Sequence[AnyEvent]:
        """Return the journal events about the run that the publisher has produced since the last
        call. If one of them is `PlaceLost`, the run's attempt must end."""
        ...

    def settle(self, run_id: str) -> str:
        """Upload the run's state after an attempt, and wait until the upload is complete. Returns
        the error as a sentence; empty if the upload succeeded."""
        ...

    def settled(self, run_id: str) -> bool:
        """Return whether the last call of `settle` uploaded the whole run, without leaving out a
        file."""
        ...


class Observer(Protocol):
    """A function that is called with each committed Record, in the thread that stored it, so it
    must be quick. It should not raise. An exception is logged as a warning of the logger `perdure`,
    and has no other effect."""

    def __call__(self, record: Record, /) -> None: ...
