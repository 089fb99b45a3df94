"""The part of a store that lists all runs, for the dashboard and `perdure top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from perdure.model import Attempt, Condition, RunState, Workspace


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
