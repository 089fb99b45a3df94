"""The board: all runs, grouped by what they need. The store counts the runs and divides them into
pages. Even with ten thousand runs, only the displayed rows are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from urllib.parse import urlencode

from msgspec import Struct
from starlette.responses import Response

from perdure.engine.service import liveness_of
from perdure.errors import UsageError
from perdure.model import Liveness, Usage
from perdure.protocols import BoardRow
from perdure.rules.liveness import advice
from perdure.rules.requests import ASKING
from perdure.rules.run_titles import worker_of
from perdure.rules.text import clock, one_line
from perdure.server.dashboard.timelines import Pip, thread
from perdure.server.dashboard.visits import Visit

GROUPS = {
    "asking": ("Needs you", 50),
    "running": ("Working", 50),
    "queued": ("Waiting", 20),
    "pending": ("Not yet", 10),
    "failed": ("Failed", 10),
    "succeeded": ("Done", 15),
    "cancelled": ("Stopped", 5),
}
"""Title of each list on the board and its maximum number of rows, by group of runs. The lists are
shown in this order."""
PAGE = 60
NEWEST = (2**62, 2**62)


class ShownRun(Struct, frozen=True, kw_only=True):
    """A row of a list on the board, as the template shows it. `alive` is the liveness of a run
    whose supervisor died; otherwise empty. `where` is the repository or directory, and the branch.
    """

    id: str
    name: str
    group: str
    alive: str
    title: str
    note: str
    agent: str
    where: str
    pips: Sequence[Pip]
    held: int
    window: int
    cost: float
    estimated: bool
    updated: int


def board(visit: Visit) -> Response:
    """Show `/`: all lists, or a single list in pages."""
    group, words, agent = visit.asked("state"), visit.asked("q").strip(), visit.asked("agent")
    if group and group not in GROUPS:
        raise UsageError(f"There is no list {group!r}", ", ".join(GROUPS))
    look = visit.desk.look
    counts = look.board_counts(agent=agent, words=words)
    given = {"q": words, "agent": agent}
    shown = []
    for each in [group] if group else [each for each in GROUPS if counts[each]]:
        word, most = GROUPS[each]
        rows = look.board(
            each, agent=agent, words=words, before=_before(visit), limit=PAGE if group else most
        )
        if rows:
            shown.append(
                {
                    "group": each,
                    "word": word,
                    "count": counts[each],
                    "rows": [_row(visit, row, each) for row in rows],
                }
            )
            shown[-1]["more"] = _more(
                rows, each, counts[each], given, PAGE if group else most, one=bool(group)
            )
    listed = []
    for each, (word, _) in GROUPS.items():
        if counts[each] or each == group:
            url = _url(given | {"state": each})
            listed.append({"group": each, "word": word, "count": counts[each], "url": url})
    return visit.page(
        "board.html",
        shown=shown,
        groups=listed,
        total=sum(counts.values()),
        group=group,
        words=words,
        agent=agent,
        all=_url(given),
        agents=sorted({*look.board_agents(), *look.board_roles()}),
        parked=look.parked(),
        here=visit.here,
        asking=counts["asking"],
    )


def _url(given: Mapping[str, str]) -> str:
    asked = urlencode({name: value for name, value in given.items() if value})
    if asked:
        return f"/?{asked}"
    return "/"


def _before(visit: Visit) -> tuple[int, int]:
    """Return where the list continues, from the parameter `before`: the values of `BoardRow.place`
    of the last row on the previous page. Return `NEWEST` if the parameter is missing or invalid."""
    first, _, second = visit.asked("before").partition(".")
    fits = first.isdecimal() and second.isdecimal() and max(len(first), len(second)) < 19
    if fits:
        return (int(first), int(second))
    return NEWEST


def _more(
    rows: Sequence[BoardRow],
    group: str,
    count: int,
    given: Mapping[str, str],
    limit: int,
    *,
    one: bool,
) -> str:
    if len(rows) < limit or (not one and count <= limit):
        return ""
    place = f"{rows[-1].place[0]}.{rows[-1].place[1]}" if one else ""
    return _url({**given, "state": group, "before": place})


def _row(visit: Visit, row: BoardRow, group: str) -> ShownRun:
    found = liveness_of(visit.desk.look, visit.desk.engine.state, visit.desk.engine.host, row)
    if found in (Liveness.INTERRUPTED, Liveness.UNATTENDED):
        alive = str(found)
    else:
        alive = ""
    used = sum((attempt.usage for attempt in row.attempts), start=Usage())
    place = row.workspace
    if place.repo:
        repo = PurePath(place.repo.rstrip("/")).name.removesuffix(".git")
    else:
        repo = PurePath(place.path).name
    branch = "" if place.branch == f"perdure/{row.name}" else place.branch
    return ShownRun(
        id=row.id,
        name=row.name,
        group=group,
        alive=alive,
        title=row.title,
        note=advice(row.name, found) if found and alive else _note(visit, row, group),
        agent=worker_of(row.role, row.agent),
        where=" ".join(part for part in (repo, branch) if part),
        pips=thread(row.attempts),
        held=row.fill_tokens,
        window=row.fill_window,
        cost=used.cost_usd,
        estimated=used.estimated,
        updated=row.updated,
    )


def _note(visit: Visit, row: BoardRow, group: str) -> str:
    """Return the text beside a run in a list: the most important fact about the run's current
    state. Empty if there is no such fact."""
    if group == "asking":
        asks = [each.message for each in row.conditions if each.type in {*ASKING, "open"}]
        return one_line("; ".join(asks) or row.reason, 200)
    if group == "running":
        latest = visit.desk.look.latest_word(row.id)
        if row.cancel_requested:
            return "is being stopped"
        return one_line(latest, 160)
    if group == "queued" and row.run_after > visit.now:
        return one_line(f"until {clock(row.run_after)[11:]}: {row.reason}", 200)
    if group in ("failed", "queued", "cancelled"):
        return one_line(row.reason, 200)
    return ""
