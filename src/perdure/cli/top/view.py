"""Reads the contents of the board at one moment from the store. Independent of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Protocol

from msgspec import Struct, field

from perdure.host.process import Probe
from perdure.model import Liveness, RunState
from perdure.protocols import BoardRow, BoardStore, RequestStore, RunStore

ASKING = "asking"
SHOWN = 100
"""Maximum number of rows that are loaded for a group. The count of a group includes all its runs.
"""


class ViewStore(RunStore, BoardStore, RequestStore, Protocol):
    """The parts of a store that the board needs."""


class Group(Struct, frozen=True):
    """A heading of the board, and its runs. `lists` names the lists of the store that are combined
    in the group. `many` is the number of all runs in them."""

    name: str
    lists: tuple[str, ...]
    rows: Sequence[BoardRow] = ()
    many: int = 0


GROUPS = (
    Group("needs input", (ASKING,)),
    Group("working", (RunState.RUNNING,)),
    Group("waiting", (RunState.QUEUED, RunState.PENDING)),
    Group("failed", (RunState.FAILED,)),
    Group("done", (RunState.CANCELLED, RunState.SUCCEEDED)),
)


class View(Struct, frozen=True):
    """The contents of the board. `words` maps the id of a running run to its agent's latest
    message."""

    now: int = 0
    groups: Sequence[Group] = GROUPS
    words: Mapping[str, str] = field(default_factory=dict)
    alive: Mapping[str, Liveness | None] = field(default_factory=dict)
    """The liveness of each running run, by the run's id."""

    def row(self, run_id: str) -> BoardRow | None:
        """Return the row of a run, if it is on the board."""
        return next(
            (
                row
                for row in chain.from_iterable(group.rows for group in self.groups)
                if row.id == run_id
            ),
            None,
        )


def load_view(store: ViewStore, probe: Probe, words: str = "") -> View:
    """Return the current contents of the board. If `words` is not empty, only runs are included
    that contain these words in their name, workdir, scope or instructions. Raises StoreError."""
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
