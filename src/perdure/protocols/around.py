"""Who is told what happened: the checkpoint store, and observers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from perdure.model import Checkpoint, Claim, TaskRun

if TYPE_CHECKING:
    from perdure.model.events import AnyEvent, Record


class Publisher(Protocol):
    """Brings checkpoints to where another machine finds them, and knows when a run is another
    machine's by now."""

    def refused(self, run: TaskRun) -> str:
        """Why no attempt may start here, in a sentence; empty if one may, and where that cannot be
        known."""
        ...

    def available(self, run: TaskRun) -> str:
        """Why a run whose files lie on another host cannot be brought here, in a sentence; empty if
        it can."""
        ...

    def fetch(self, claim: Claim) -> TaskRun:
        """Brings workdir and conversation of a claimed run here, from where another host has
        published them. Raises PerdureError."""
        ...

    def published(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is in the store. Returns at once; of several the newest is brought out."""
        ...

    def told(self, run_id: str) -> Sequence[AnyEvent]:
        """What is to be told of the run since this was last asked; after `PlaceLost` its attempt
        must end."""
        ...

    def settle(self, run_id: str) -> str:
        """Brings out how the run stands after an attempt, and waits for it. Returns what went wrong
        in a sentence, or nothing."""
        ...

    def settled(self, run_id: str) -> bool:
        """Whether all of the run was brought out by the last `settle`, with no file left out."""
        ...


class Observer(Protocol):
    """Called with each committed Record, in the thread that stored it, so it must be quick. It may
    not raise: what it raises is logged as a warning of the logger `perdure`, and changes nothing.
    """

    def __call__(self, record: Record, /) -> None: ...
