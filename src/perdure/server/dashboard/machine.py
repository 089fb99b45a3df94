"""Two pages about this machine. `/checks` shows the results of `perdure doctor`, and the settings
with their sources. `/disk` shows how much disk is used, by which owner, what could be freed, and
what the next sweep would do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from starlette.responses import Response

from perdure.config.passwords import shown
from perdure.engine.sweeper import (
    DiskUsage,
    Row,
    Sweep,
    SweepVerdict,
    next_sweep,
    rules_of,
    sweep,
    usage,
)
from perdure.server.dashboard.visits import Visit

CHECKS_FRESH_S = 60.0


def checks(visit: Visit) -> Response:
    """Show `/checks`: the results of `perdure doctor` and the settings."""
    found, under_way = visit.desk.measured.get(
        "checks", lambda: list(visit.desk.checks()), CHECKS_FRESH_S, visit.now
    )
    chosen = visit.desk.settings
    settings = []
    for each in chosen.__struct_fields__:
        if each != "origin":
            settings.append(
                (
                    each,
                    _text(shown(each, getattr(chosen, each))),
                    chosen.origin.get(each, ""),
                )
            )
    return visit.page("checks.html", found=found, under_way=under_way, settings=settings)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(getattr(each, "name", each)) for each in value)
    if value is None:
        return ""
    return str(value)


USAGE_FRESH_S = 600.0
ROWS = 300


class ShownSweep(Struct, frozen=True, kw_only=True):
    """The next sweep, as the template shows it. `take`: at most `ROWS` items to remove. `person`:
    at most `ROWS` items about which a person must decide. `kept`: number of kept items by class."""

    take: Sequence[Row] = ()
    person: Sequence[Row] = ()
    kept: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""


def disk(visit: Visit) -> Response:
    """Show `/disk` with the last measurement. If it is older than ten minutes, start a new one."""
    engine = visit.desk.engine
    found, under_way = visit.desk.measured.get(
        "disk",
        lambda: usage(engine.store, engine.workspaces, engine.state),
        USAGE_FRESH_S,
        visit.now,
    )
    taken: DiskUsage | None = found.value if found is not None else None
    if taken is not None:
        dry, looking = visit.desk.measured.get(
            "sweep",
            lambda: sweep(
                engine.store,
                engine.workspaces,
                engine.state,
                rules_of(visit.desk.settings),
                dry=True,
            ),
            USAGE_FRESH_S,
            visit.now,
        )
    else:
        dry, looking = (None, False)
    swept: Sweep | None = dry.value if dry is not None else None
    return visit.page(
        "disk.html",
        found=found,
        under_way=under_way or looking,
        taken=taken,
        parts=_parts(taken),
        dry=dry,
        rows=_rows(swept),
        reclaimable=_reclaimable(swept),
        crowded=engine.volumes.crowded(),
        next_sweep=next_sweep(engine.state),
    )


def measure(visit: Visit) -> Response:
    """Discard the cached measurements, so that the page makes new ones. Return a redirect to the
    page."""
    visit.desk.measured.forget("disk")
    visit.desk.measured.forget("sweep")
    return visit.to("/disk")


def _parts(taken: DiskUsage | None) -> list[tuple[str, list[tuple[str, int]]]]:
    if taken is None:
        return []
    found = []
    for part, word in enumerate(("what", "agent", "repository or service", "role")):
        found.append((word, taken.by(part)[:20]))
    return found


def _reclaimable(swept: Sweep | None) -> tuple[int, int]:
    """Return a pair: the total size in bytes of the items that the next sweep would remove, and the
    number of these items."""
    taken = swept.taken if swept is not None else ()
    return sum(row.bytes for row in taken), len(taken)


def _rows(swept: Sweep | None) -> ShownSweep:
    if swept is None:
        return ShownSweep()
    return ShownSweep(
        take=swept.taken[:ROWS],
        person=[row for row in swept.rows if row.verdict is SweepVerdict.PERSON][:ROWS],
        kept=Counter(str(row.cls) for row in swept.rows if row.verdict is SweepVerdict.KEEP),
        trouble=swept.trouble,
    )
