"""The seam of those who count: how many there are of each kind, and each attempt that has ended,
once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from perdure.lateclass import dataclass
from perdure.model import Attempt, RunState, SessionKey, SessionState

if TYPE_CHECKING:
    from perdure.model.events import Record


@dataclass(frozen=True, slots=True)
class AtWork:
    """The running runs of an agent on a host: how many, and of how many nobody has renewed the
    lease."""

    agent: str
    host: str
    """Empty where the database is not shared."""
    runs: int
    lapsed: int
    lease_until: int
    """The lease (ms) that ends first, or ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How the store stands at one moment, in numbers. Removed runs are not counted."""

    at: int
    """The store's clock, in ms."""
    runs: Mapping[tuple[str, RunState], int]
    """By agent and state."""
    due: int
    due_since: int | None
    """Since when (ms) the run waits that is due the longest; None where none is."""
    at_work: Sequence[AtWork]
    need_person: Mapping[str, int]
    """Runs with the condition `needs_person`, by agent."""
    opened: int
    """Runs that a person has open in the agent's own program."""
    parked: int
    sessions: Mapping[tuple[str, SessionState], int]
    """By agent and state."""
    checkpoints: int
    deliveries: Mapping[tuple[str, str], int]
    """By source and state."""
    delivery_since: int | None
    """When (ms) the oldest delivery came that is not settled; None where there is none."""
    trouble: Mapping[tuple[str, str], int]
    """Records of all time, by agent and kind: `checkpoint_missed`, `collision_seen`, `compacted`,
    `copy_missed`, `rolled_over`."""


class CountingStore(Protocol):
    """What there is of each kind. A count walks an index and decodes nothing."""

    def counts(self) -> Counts:
        """All numbers at one moment."""
        ...

    def ended_after(
        self, ended: int, run: str, number: int, limit: int = 1000
    ) -> Sequence[tuple[SessionKey, Attempt]]:
        """The attempts behind this one in the order of (end in ms, run, number), with their runs'
        keys: all of them, page by page."""
        ...

    def attempt_marks(self, run: str, attempt: int) -> Sequence[Record]:
        """What perdure itself did in an attempt, oldest first and at most 200: launches,
        checkpoints, checks, what became of the conversation. Nothing that the agent said."""
        ...
