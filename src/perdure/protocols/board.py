"""What a store offers to those who want to see everything at once: the dashboard, and other
boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from perdure.lateclass import dataclass
from perdure.model import Attempt, Condition, RunState, Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRow:
    """A run as a board shows it."""

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
    """The beginning of its first instructions."""
    attempts: tuple[Attempt, ...]
    """The newest, oldest first."""
    place: tuple[int, int]
    """Where it stands in its list: what `before` takes for the next page."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that did not succeed, with its run as it stands now. `name` is empty for a run
    that is off the list."""

    name: str
    agent: str
    state: RunState
    attempt: Attempt


class BoardStore(Protocol):
    """Lists for those who want to see everything at once: `asking` is what asks for a person or is
    open to one, and else a state's name is the list of those in it that do not. `words` are looked
    for in name, workdir, scope and first instructions, in any case."""

    def board(
        self,
        group: str,
        *,
        agent: str = "",
        words: str = "",
        before: tuple[int, int] = ...,
        limit: int = 50,
    ) -> Sequence[BoardRow]:
        """One list, the newest change first; `before`: only what stands below a row's place."""
        ...

    def board_counts(self, *, agent: str = "", words: str = "") -> Mapping[str, int]:
        """How many runs are on each of the lists."""
        ...

    def board_asking(self) -> int:
        """How many runs are on the list `asking`, whatever is searched for."""
        ...

    def board_agents(self) -> Sequence[str]:
        """The agents that any run on the list has."""
        ...

    def latest_word(self, run_id: str) -> str:
        """What its agent said or did last, as a line; empty before it did anything."""
        ...

    def failed_attempts(self, since: int, limit: int) -> Sequence[FailedAttempt]:
        """Attempts that ended since then (ms), and not with success, the newest first."""
        ...
