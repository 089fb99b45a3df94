"""The part of a store that shows all runs at once, for the dashboard and other boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from perdure.model import Attempt, Condition, RunState, Workspace


class BoardRow(Struct, frozen=True, kw_only=True):
    """The fields of a run that a board shows."""

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
    """The beginning of the run's first instructions."""
    title: str
    """The subject of the run, cleaned and on one line: the title of its issue, or the first words
    of its prompt."""
    link: str
    """The address of the run's issue or pull request; empty for a run that no forge started."""
    role: str
    """The rule that the run works under; empty if none."""
    attempts: tuple[Attempt, ...]
    """The newest attempts, in the order in which they began."""
    place: tuple[int, int]
    """The row's position in the list, to be passed as `before` for the next page."""


class FailedAttempt(Struct, frozen=True):
    """An attempt that did not succeed, with the current state of its run. `name` is empty if the
    run was removed from the list."""

    name: str
    agent: str
    state: RunState
    attempt: Attempt


class RunMarks(Struct, frozen=True):
    """The properties of a run that the limits of a token are compared with."""

    id: str
    name: str
    agent: str
    role: str
    repo: str
    """The address or path of its repository; empty if it has none."""
    labels: Mapping[str, str]


class BoardStore(Protocol):
    """Lists of runs. `asking` has the runs that need a person or are open to one. Each other list
    is named after a state, and has the runs in that state that are not on `asking`. `words` are
    searched for in name, title, workdir, scope and first instructions, ignoring case. `agent` is
    the name of an agent or of a role."""

    def board(
        self,
        group: str,
        *,
        agent: str = "",
        words: str = "",
        before: tuple[int, int] = ...,
        limit: int = 50,
    ) -> Sequence[BoardRow]:
        """Return one list, the newest change first. `before`: only rows below this position."""
        ...

    def board_counts(self, *, agent: str = "", words: str = "") -> Mapping[str, int]:
        """Return the number of runs on each list."""
        ...

    def board_found(self, *, agent: str = "", words: str = "") -> Sequence[tuple[str, str]]:
        """Return the id and the list of each run that `board_counts` counts."""
        ...

    def run_marks(self) -> Sequence[RunMarks]:
        """Return the marks of all runs, also of removed ones, newest first."""
        ...

    def board_asking(self) -> int:
        """Return the number of runs on the list `asking`, ignoring any search."""
        ...

    def board_agents(self) -> Sequence[str]:
        """Return the agents of all runs on the list."""
        ...

    def board_roles(self) -> Sequence[str]:
        """Return the roles of all runs on the list."""
        ...

    def latest_word(self, run_id: str) -> str:
        """Return the latest text or action of the run's agent, as a line; empty if it has done
        nothing yet."""
        ...

    def failed_attempts(self, since: int, limit: int) -> Sequence[FailedAttempt]:
        """Return the attempts that ended without success since a time (ms), newest first."""
        ...
