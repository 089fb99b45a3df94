"""What is on the board at one moment, read from the store in one go. No terminal here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from itertools import chain
from typing import Protocol

from perdure.host.process import Probe
from perdure.lateclass import dataclass
from perdure.model import RunState
from perdure.protocols import BoardRow, BoardStore, RunStore
from perdure.rules.liveness import Liveness

ASKING = "asking"
SHOWN = 100
"""Rows of a list; the counts are of all."""


class Looked(RunStore, BoardStore, Protocol):
    """What the board looks into."""


@dataclass(frozen=True, slots=True)
class Group:
    """A heading and its runs. `lists` are those of the store that it is made of."""

    name: str
    lists: tuple[str, ...]
    rows: Sequence[BoardRow] = ()
    many: int = 0


GROUPS = (
    Group("needs input", (ASKING,)),
    Group("working", (RunState.RUNNING,)),
    Group("waiting", (RunState.QUEUED, RunState.PENDING)),
    Group("done", (RunState.FAILED, RunState.CANCELLED, RunState.SUCCEEDED)),
)


@dataclass(frozen=True, slots=True)
class View:
    """The board. `words`: the latest of each agent at work, by the run's id."""

    now: int = 0
    groups: Sequence[Group] = GROUPS
    words: Mapping[str, str] = field(default_factory=dict)
    alive: Mapping[str, Liveness | None] = field(default_factory=dict)
    """What lives of those that are running, by the run's id."""

    def row(self, run_id: str) -> BoardRow | None:
        """The row of a run, if it is on the board."""
        return next(
            (
                row
                for row in chain.from_iterable(group.rows for group in self.groups)
                if row.id == run_id
            ),
            None,
        )


def look(store: Looked, probe: Probe, words: str = "") -> View:
    """The board as it is now; with `words` only what has them in name, workdir, scope or
    instructions. Raises StoreError."""
    counts = store.board_counts(words=words)
    groups = []
    for group in GROUPS:
        rows = list(
            chain.from_iterable(store.board(name, words=words, limit=SHOWN) for name in group.lists)
        )
        newest = sorted(rows, key=lambda row: row.place, reverse=True)[:SHOWN]
        groups.append(
            Group(group.name, group.lists, newest, sum(counts[name] for name in group.lists))
        )
    at_work = [
        row
        for row in chain.from_iterable(group.rows for group in groups)
        if row.state is RunState.RUNNING
    ]
    now = store.now()
    alive = {row.id: probe.liveness(row, now, partial(store.get, row.id)) for row in at_work}
    return View(now, groups, {row.id: store.latest_word(row.id) for row in at_work}, alive)
