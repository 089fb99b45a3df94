"""The part of a store that counts runs, sessions and deliveries, and lists ended attempts, for
metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from perdure.model import Attempt, RunState, SessionKey, SessionState

if TYPE_CHECKING:
    from perdure.model.events import Record


class RunningRuns(Struct, frozen=True):
    """The number of running runs of one agent on one host. `lapsed` is the number of those runs
    whose lease has expired."""

    agent: str
    host: str
    """Id of the host; empty if the database is not shared."""
    runs: int
    lapsed: int
    lease_until: int
    """Time (ms) at which the first of these runs' leases expires or has expired."""


class Counts(Struct, frozen=True, kw_only=True):
    """Counts of the store's contents at one moment. Removed runs are not counted."""

    at: int
    """Time at which the store was counted, by the store's clock, in ms."""
    runs: Mapping[tuple[str, RunState], int]
    """Number of runs, by agent and state."""
    roles: Mapping[tuple[str, RunState], int]
    """Number of runs that work under a rule, by the rule's name and state."""
    due: int
    due_since: int | None
    """Time (ms) at which the run that has waited longest became due; None if no run is due."""
    at_work: Sequence[RunningRuns]
    need_person: Mapping[str, int]
    """Number of runs with the condition `needs_person`, by agent."""
    opened: int
    """Number of runs that a person has open in the agent's own program."""
    parked: int
    sessions: Mapping[tuple[str, SessionState], int]
    """Number of sessions, by agent and state."""
    checkpoints: int
    deliveries: Mapping[tuple[str, str], int]
    """Number of deliveries, by source and state."""
    delivery_since: int | None
    """Time (ms) at which the oldest unsettled delivery arrived; None if there is none."""
    trouble: Mapping[tuple[str, str], int]
    """Number of journal records of any age, by agent and kind. Only these kinds are counted:
    `checkpoint_missed`, `collision_seen`, `compacted`, `copy_missed`, `rolled_over`."""


class CountingStore(Protocol):
    """Counts the contents of the store. Each count reads only an index and decodes no JSON."""

    def counts(self) -> Counts:
        """Return all counts, taken at one moment."""
        ...

    def ended_after(
        self, ended: int, run: str, number: int, limit: int = 1000
    ) -> Sequence[tuple[SessionKey, Attempt]]:
        """Return the ended attempts after the given position, in the order of end (ms), run and
        number. Each comes with its run's key. For the next page, pass the values of the last
        attempt."""
        ...

    def attempt_records(self, run: str, attempt: int) -> Sequence[Record]:
        """Return the records of perdure's own steps in an attempt, oldest first and at most 200:
        launches, checkpoints, checks, and what happened to the conversation. The agent's messages
        are left out."""
        ...
