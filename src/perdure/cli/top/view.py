"""Reads the contents of the board at one moment from the store (`load_view`), and renders its rows
and panels as text. Independent of the terminal.

Text from an agent, a repository or a forge is cleaned here. Markup in such text is never
interpreted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from msgspec import Struct, field
from rich.text import Text

from perdure.host.process import Probe
from perdure.model import Attempt, Condition, Liveness, RunState
from perdure.model.events import Record
from perdure.protocols import BoardRow, BoardStore, RequestStore, RunStore
from perdure.rules.liveness import advice
from perdure.rules.log_line import line_of
from perdure.rules.requests import ASKING, WAITING
from perdure.rules.run_titles import worker_of
from perdure.rules.text import age, at_home, clean, clock, dollars, one_line, tokens

ASKING_STATE = "asking"
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
    Group("needs input", (ASKING_STATE,)),
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
        for group in self.groups:
            for row in group.rows:
                if row.id == run_id:
                    return row
        return None


def load_view(store: ViewStore, probe: Probe, words: str = "") -> View:
    """Return the current contents of the board. If `words` is not empty, only runs are included
    that contain these words in their name, workdir, scope or instructions. Raises StoreError."""
    counts = store.board_counts(words=words)
    groups = []
    at_work: list[BoardRow] = []
    for group in GROUPS:
        rows: list[BoardRow] = []
        many = 0
        for name in group.lists:
            rows += store.board(name, words=words, limit=SHOWN)
            many += counts[name]
        newest = sorted(rows, key=lambda row: row.place, reverse=True)[:SHOWN]
        groups.append(Group(group.name, group.lists, newest, many))
        at_work += [row for row in newest if row.state is RunState.RUNNING]
    now = store.now()
    alive = {row.id: probe.liveness(row, now, partial(store.get, row.id)) for row in at_work}
    latest = {row.id: store.latest_word(row.id) for row in at_work}
    return View(now, groups, latest, alive)


NAME, AGENT, STATE, TRY, AGE = 24, 17, 11, 4, 5
STYLES = {
    "asks": "bold yellow",
    "open": "bold yellow",
    "running": "green",
    "interrupted": "bold red",
    "unattended": "bold yellow",
    "stopping": "yellow",
    "succeeded": "cyan",
    "failed": "red",
    "cancelled": "dim",
    "queued": "",
    "waits": "",
    "pending": "dim",
}
PEEKED = 8
"""Maximum number of lines of a run's log that the panel shows."""
ATTEMPTS = 4


def state_of(row: BoardRow, now: int, alive: Liveness | None = None) -> str:
    """Return a run's state in one word. `alive` is the liveness of the run, if it is running."""
    if row.state is RunState.RUNNING and alive in (Liveness.INTERRUPTED, Liveness.UNATTENDED):
        return str(alive)
    if row.opened:
        return "open"
    if _asking(row):
        return "asks"
    if row.state is RunState.RUNNING and row.cancel_requested:
        return "stopping"
    if row.state is RunState.QUEUED and row.run_after > now:
        return "waits"
    return str(row.state)


def _asking(row: BoardRow) -> list[Condition]:
    return [condition for condition in row.conditions if condition.type in ASKING]


def heading(group: Group) -> Text:
    """Return the heading of a group: its name and the number of its runs."""
    if group.many > len(group.rows):
        more = f" (the newest {len(group.rows)} are shown)"
    else:
        more = ""
    return Text.assemble(
        (group.name, "bold underline"),
        (f"  {group.many}{more}", "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )


def run_line(row: BoardRow, view: View) -> Text:
    """Return a run on one line: name, agent, state, attempts, age, and the most useful detail."""
    state = state_of(row, view.now, view.alive.get(row.id))
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(_cell(row.name, NAME))
    line.append(_cell(worker_of(row.role, row.agent), AGENT), "dim")
    line.append(_cell(state, STATE), STYLES.get(state, ""))
    line.append(_cell(f"{row.attempt}/{row.attempts_allowed}", TRY), "dim")
    line.append(f"{age(row.updated, view.now):>{AGE}}  ", "dim")
    line.append(one_line(_about(row, view, state), 300))
    return line


def _about(row: BoardRow, view: View, state: str) -> str:
    match state:
        case "asks" if WAITING in {condition.type for condition in row.conditions}:
            asked = row.reason.removeprefix(f"{WAITING}: ")
            return f"i answers; {asked}"
        case "asks":
            return _asking(row)[0].message
        case "running" | "stopping":
            return view.words.get(row.id, "").strip() or row.title
        case "interrupted" | "unattended":
            return advice(row.name, Liveness(state))
        case "waits":
            return f"until {clock(row.run_after)}: {row.reason}"
        case "failed" | "cancelled" | "queued":
            return row.reason or row.title
        case "succeeded" if row.attempts and row.attempts[-1].work:
            return f"{row.attempts[-1].work}: {row.title}"
        case _:
            return row.title


def peek(row: BoardRow, records: Sequence[Record], now: int) -> Text:
    """Return the contents of a run's panel: its workdir, its attempts with their receipts, and the
    end of its log."""
    panel = Text(no_wrap=True, overflow="ellipsis")
    place = row.workspace
    branch = f" on {one_line(place.branch, 80)}" if place.branch else ""
    panel.append(f"{clean(row.name)}", "bold")
    panel.append(f"  {one_line(row.title, 200)}\n")
    host = f", {clean(row.host_name)}" if row.host_name else ""
    if row.link:
        panel.append(f"{clean(row.link)}\n", "dim")
    panel.append(f"{at_home(place.path)}{branch}{host}\n", "dim")
    for condition in row.conditions:
        panel.append(
            f"{one_line(condition.type, 40)}: {one_line(condition.message, 240)}\n", "yellow"
        )
    for attempt in row.attempts[-ATTEMPTS:]:
        panel.append(f"{_attempt(attempt, now)}\n")
    lines = list(filter(None, map(line_of, records)))
    for line in lines[-PEEKED:]:
        panel.append(f"  {one_line(line, 300)}\n", "dim")
    panel.rstrip()
    return panel


def _attempt(attempt: Attempt, now: int) -> str:
    outcome, receipt = attempt.outcome, attempt.receipt
    if attempt.continuation:
        how = str(attempt.continuation.kind)
    else:
        how = "not started"
    if outcome is None:
        ended = "running"
    else:
        ended = f"{outcome.kind}" + (
            f" ({one_line(outcome.detail, 100)})" if outcome.detail else ""
        )
    took = age(attempt.started, attempt.ended or now)
    proof = f", receipt {receipt.verdict}" if receipt else ""
    spent = dollars(attempt.usage.cost_usd, estimated=attempt.usage.estimated)
    if outcome or attempt.usage.input:
        used = f", {tokens(attempt.usage.input)} in, {tokens(attempt.usage.output)} out, {spent}"
    else:
        used = ""
    work = f", work {one_line(attempt.work, 20)}" if attempt.work else ""
    return f"attempt {attempt.number}  {how}, {took}: {ended}{proof}{work}{used}"


def log_line(record: Record) -> Text | None:
    """Return a record as a line of the log. Return None for a record that is not shown to
    people."""
    line = line_of(record)
    if not line:
        return None
    return Text.assemble((f"{clock(record.at)[11:]}  ", "dim"), clean(line))


def _cell(text: str, width: int) -> str:
    line = one_line(text, width)
    return f"{line:{width}}  "
