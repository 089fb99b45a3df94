"""The parts of a store that list and count runs.

`BoardStore` lists all runs, for the dashboard and `perdure top`. `CountingStore` counts runs,
sessions and deliveries, and lists ended attempts, for metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from perdure.model import Attempt, Condition, RunState, SessionKey, SessionState, Workspace

if TYPE_CHECKING:
    from perdure.model.events import Record


class BoardRow(Struct, frozen=True, kw_only=True):
    """The fields of a run that the dashboard and `perdure top` show."""

    id: str
    name: str
    state: RunState
    agent: str
    attempt: int
    attempts_allowed: int
    reason: str
    created: int
    updated: int
    finished: int | None
    run_after: int
    fill_tokens: int
    fill_window: int
    host: str
    host_name: str
    worker: str
    lease_until: int
    opened: bool
    cancel_requested: bool
    conditions: tuple[Condition, ...]
    workspace: Workspace
    prompt: str
    """Beginning of the run's first instructions."""
    title: str
    """Title of the run's issue, or the first words of its prompt. It is one line without control
    characters."""
    link: str
    """Address of the run's issue or pull request; empty for a run that no forge started."""
    role: str
    """Name of the rule that the run works under; empty if none."""
    attempts: tuple[Attempt, ...]
    """The newest attempts, in the order in which they began."""
    place: tuple[int, int]
    """Position of the row in its list. To get the next page, pass the last row's position as the
    argument `before` of `BoardStore.board`."""


class FailedAttempt(Struct, frozen=True):
    """An attempt that did not succeed, with the present state of its run. `name` is empty if the
    run was removed from the list."""

    name: str
    agent: str
    state: RunState
    attempt: Attempt


class RunProperties(Struct, frozen=True):
    """The properties of a run that decide whether a token's limits include the run."""

    id: str
    name: str
    agent: str
    role: str
    repo: str
    """Address or path of the run's repository; empty if it has none."""
    labels: Mapping[str, str]


class BoardStore(Protocol):
    """Lists of runs. The list `asking` has the runs that need a person, or that a person has open.
    Each other list is named after a state, and has the runs in that state that are not in `asking`.
    `words` are searched for in name, title, workdir, scope and first instructions, ignoring case.
    `agent` selects the runs of one agent or one role, by its name."""

    def board(
        self,
        group: str,
        *,
        agent: str = "",
        words: str = "",
        before: tuple[int, int] = ...,
        limit: int = 50,
    ) -> Sequence[BoardRow]:
        """Return the rows of one list, the run that changed last first. `before`: return only the
        rows that follow this position in the list, that is, runs that changed earlier."""
        ...

    def board_counts(self, *, agent: str = "", words: str = "") -> Mapping[str, int]:
        """Return the number of runs in each list."""
        ...

    def board_found(self, *, agent: str = "", words: str = "") -> Sequence[tuple[str, str]]:
        """Return the id and the list's name of each run that `board_counts` counts with the same
        arguments."""
        ...

    def run_properties(self) -> Sequence[RunProperties]:
        """Return the properties of all runs, including removed ones, newest first."""
        ...

    def board_asking(self) -> int:
        """Return the number of runs in the list `asking`, of all agents."""
        ...

    def board_agents(self) -> Sequence[str]:
        """Return the names of the agents of all runs that are not removed."""
        ...

    def board_roles(self) -> Sequence[str]:
        """Return the names of the rules of all runs that are not removed."""
        ...

    def latest_word(self, run_id: str) -> str:
        """Return the latest text or action of the run's agent, on one line; empty if it has done
        nothing yet."""
        ...

    def failed_attempts(self, since: int, limit: int) -> Sequence[FailedAttempt]:
        """Return the attempts that have ended without success since a time (ms), newest first."""
        ...


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
