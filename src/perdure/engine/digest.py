"""Summarizes a span of time: runs that succeeded, failed, wait or need a person, and their cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from perdure.model import RunState, Usage
from perdure.protocols import BoardRow, BoardStore, RunStore, SessionStore
from perdure.rules.requests import ASKING

PAGE = 200
MOST = 1000
"""Maximum number of runs in each list of a digest."""
SCHEMA_VERSION = 1
ON_LIST = ASKING | {"open"}
"""Types of conditions that put a run on the list `needs_you`. The list shows their messages."""


class DigestRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a digest. All times are in ms since 1970."""

    name: str
    title: str
    link: str
    role: str
    agent: str
    state: str
    message: str
    """Text for a person: what the run needs, why it failed, or why it waits. May be empty."""
    updated: int
    until: int
    """Time until which the run waits, in ms since 1970; 0 if it does not wait."""
    cost_usd: float
    """Cost of those attempts of the run that ended in the span, in dollars."""
    estimated: bool


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """A summary of a time span. Each list has its newest run first. `failed` and `done` list the
    runs that ended in the span. `needs_you`, `waiting` and `working` list the runs that are in
    these states now, even if they entered the state before the span."""

    schema_version: int
    since: int
    until: int
    needs_you: list[DigestRun]
    failed: list[DigestRun]
    done: list[DigestRun]
    waiting: list[DigestRun]
    working: list[DigestRun]
    attempts: int
    """Number of attempts that ended in the span."""
    cost_usd: float
    estimated: bool
    cut: bool
    """Whether a list was cut because it had more than `MOST` runs."""


class DigestStore(RunStore, SessionStore, BoardStore, Protocol):
    """The parts of a store that a digest reads."""


def digest(store: DigestStore, since: int) -> Digest:
    """Return the digest of the time from `since` (ms since 1970) until now."""
    now = store.now()
    used: dict[str, Usage] = {}
    ended = store.ended(since, now + 1)
    for _, attempt in ended:
        used[attempt.run] = used.get(attempt.run, Usage()) + attempt.usage
    total = sum(used.values(), start=Usage())
    asking = list(_rows(store, "asking", 0))
    failed = list(_rows(store, RunState.FAILED, since))
    done = list(_rows(store, RunState.SUCCEEDED, since))
    queued = [*_rows(store, RunState.QUEUED, 0), *_rows(store, RunState.PENDING, 0)]
    working = list(_rows(store, RunState.RUNNING, 0))
    lists = (asking, failed, done, queued, working)
    shown = [[_run_of(row, used, now) for row in rows[:MOST]] for rows in lists]
    return Digest(
        schema_version=SCHEMA_VERSION,
        since=since,
        until=now,
        needs_you=shown[0],
        failed=shown[1],
        done=shown[2],
        waiting=shown[3],
        working=shown[4],
        attempts=len(ended),
        cost_usd=total.cost_usd,
        estimated=total.estimated,
        cut=any(len(rows) > MOST for rows in lists),
    )


def _rows(store: BoardStore, group: str, since: int) -> Iterator[BoardRow]:
    """Yield the rows of the board's list `group`, newest first. With `since`, yield only runs that
    ended at or after this time; 0 means all. At most `MOST` + 1 rows are yielded: the extra row
    shows the caller that the list must be cut."""
    before = (2**62, 2**62)
    count = 0
    while count <= MOST:
        rows = store.board(str(group), before=before, limit=PAGE)
        for row in rows:
            if row.updated < since:
                return
            if not since or (row.finished or 0) >= since:
                count += 1
                yield row
        if len(rows) < PAGE:
            return
        before = rows[-1].place


def _run_of(row: BoardRow, used: Mapping[str, Usage], now: int) -> DigestRun:
    spent = used.get(row.id, Usage())
    asks = []
    for each in row.conditions:
        if each.type in ON_LIST:
            asks.append(each.message)
    return DigestRun(
        name=row.name,
        title=row.title,
        link=row.link,
        role=row.role,
        agent=row.agent,
        state=str(row.state),
        message="; ".join(asks) or row.reason,
        updated=row.updated,
        until=row.run_after if row.state is RunState.QUEUED and row.run_after > now else 0,
        cost_usd=spent.cost_usd,
        estimated=spent.estimated,
    )
