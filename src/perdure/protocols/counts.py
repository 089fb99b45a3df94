"""The part of a store that counts, for metrics: the number of things of each kind, and each ended
attempt once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from perdure.model import Attempt, RunState, SessionKey, SessionState

if TYPE_CHECKING:
    from perdure.model.events import Record


class AtWork(Struct, frozen=True):
    """The running runs of an agent on a host: their number, and the number whose lease was not
    renewed."""

    agent: str
    host: str
    """Empty if the database is not shared."""
    runs: int
    lapsed: int
    lease_until: int
    """Time (ms) at which the first of the leases ends, or ended."""


class Counts(Struct, frozen=True, kw_only=True):
    """The numbers of things in the store at one moment. Removed runs are not counted."""

    at: int
    """The store's clock, in ms."""
    runs: Mapping[tuple[str, RunState], int]
    """By agent and state."""
    roles: Mapping[tuple[str, RunState], int]
    """Runs that work under a rule, by rule and state."""
    due: int
    due_since: int | None
    """Time (ms) since which the longest waiting run has been due; None if no run is due."""
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
    """When (ms) the oldest unsettled delivery arrived; None if there is none."""
    trouble: Mapping[tuple[str, str], int]
    """Number of records since the beginning, by agent and kind: `checkpoint_missed`,
    `collision_seen`, `compacted`, `copy_missed`, `rolled_over`."""


class CountingStore(Protocol):
    """Counts the contents of the store. A count reads an index and decodes nothing."""

    def counts(self) -> Counts:
        """Return all numbers, taken at one moment."""
        ...

    def ended_after(
        self, ended: int, run: str, number: int, limit: int = 1000
    ) -> Sequence[tuple[SessionKey, Attempt]]:
        """Return the attempts after this one in the order of (end in ms, run, number), with their
        runs' keys. Call it again with the last one for the next page."""
        ...

    def attempt_marks(self, run: str, attempt: int) -> Sequence[Record]:
        """Return perdure's own steps in an attempt, oldest first and at most 200 records:
        launches, checkpoints, checks, the fate of the conversation. The agent's messages are not
        among them."""
        ...
