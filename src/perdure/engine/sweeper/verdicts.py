"""What is to become of each thing, and why. Pure: the inventory goes in, a row for each thing comes
out.

Kept is everything that is not recognised, that somebody uses, whose age is not certain, or that has
changes that exist nowhere else. What may go still passes the brake: a mistake (a wrong clock, a
wrong directory) takes many things at once, ordinary use takes few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from perdure.lateclass import dataclass

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FEW = 10
"""So many of one class may always go at once."""
SHARE = 0.2
"""Above that, no more than this part of a class."""


class Class(StrEnum):
    """What there is to clean up; each has an age of its own in the settings."""

    WORKDIRS = "workdirs"
    COPIES = "copies"
    LOGS = "logs"
    ORPHANS = "orphans"
    CHECKPOINTS = "checkpoints"
    CACHES = "caches"
    SCRATCH = "scratch"
    TRASH = "trash"
    UNKNOWN = "unknown"


class SweepVerdict(StrEnum):
    """`person`: it stays, and somebody should look at it."""

    KEEP = "keep"
    TAKE = "take"
    PERSON = "person"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing and what becomes of it. `used`: when it was last of use (ms); `key`: how the doing
    module finds it again."""

    cls: Class
    name: str
    path: str
    key: str = ""
    used: int = 0
    keep: str = ""
    """Why it stays whatever its age; empty if only its age matters."""
    verdict: SweepVerdict = SweepVerdict.KEEP
    why: str = ""
    bytes: int = 0
    """Disk space of what is taken."""
    trash: str = ""
    """The trash entry that it became."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Ages in ms by class, and the most that goes at once."""

    ages: Mapping[Class, int]
    most: int = 200
    many: bool = False
    """A person allows any number."""


def judge(row: Row, rules: Rules, now: int) -> Row:
    """The verdict on one thing by what is known of it."""
    if row.cls is Class.UNKNOWN:
        return replace(
            row, verdict=SweepVerdict.KEEP, why=row.keep or "it is nothing that perdure knows"
        )
    if row.keep:
        return replace(row, verdict=SweepVerdict.KEEP, why=row.keep)
    age, allowed = now - row.used, rules.ages[row.cls]
    if not row.used:
        return replace(row, verdict=SweepVerdict.KEEP, why="nothing tells its age")
    if age < -HOUR_MS:
        return replace(
            row, verdict=SweepVerdict.PERSON, why="its time lies in the future: is the clock right?"
        )
    if age < allowed:
        return replace(
            row,
            verdict=SweepVerdict.KEEP,
            why=f"last used {ago(age)} ago; it may go after {ago(allowed)}",
        )
    return replace(
        row, verdict=SweepVerdict.TAKE, why=f"not used for {ago(age)}; {ago(allowed)} are allowed"
    )


def brake(rows: Sequence[Row], rules: Rules) -> list[Row]:
    """The rows, with every class kept whole of which too much would go at once."""
    stopped: dict[Class, str] = {}
    for cls in Class:
        of_class = [row for row in rows if row.cls is cls]
        going = sum(row.verdict is SweepVerdict.TAKE for row in of_class)
        if not rules.many and going > max(FEW, min(rules.most, int(len(of_class) * SHARE))):
            stopped[cls] = (
                f"too much at once: {going} of {len(of_class)} would go; `perdure gc --many` "
                "allows it"
            )
    return [stop(row, stopped.get(row.cls, "")) for row in rows]


def stop(row: Row, why: str) -> Row:
    """The row, kept for a reason that is not its own; as it is without one."""
    return (
        replace(row, verdict=SweepVerdict.PERSON, why=why)
        if why and row.verdict is SweepVerdict.TAKE
        else row
    )


def ago(ms: int) -> str:
    """`40 min`, `7 h`, `3 d`."""
    if ms >= DAY_MS:
        return f"{ms // DAY_MS} d"
    return f"{ms // HOUR_MS} h" if ms >= HOUR_MS else f"{max(ms, 0) // 60_000} min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A reading of both clocks. `boot`: seconds since the machine was started, suspended time too;
    `boot_id`: which start that was."""

    wall: int
    boot: float
    boot_id: str


UNCHECKED_MS = 8 * DAY_MS
"""A machine that was off for longer may come back with any date."""


def clock_trouble(last: Moment | None, now: Moment) -> str:
    """Why the clock cannot be trusted to tell ages, as a sentence; empty if it can. `last` is the
    reading of the last sweep."""
    if last is None:
        return ""
    passed = now.wall - last.wall
    if last.boot_id != now.boot_id:
        if passed < -HOUR_MS:
            return f"the clock stands {ago(-passed)} before the last sweep"
        if passed > UNCHECKED_MS:
            return (
                f"the machine was started anew, and the clock says that {ago(passed)} have passed, "
                "which nothing confirms"
            )
        return ""
    drift = passed - int((now.boot - last.boot) * 1000)
    if abs(drift) > HOUR_MS:
        way = "forward" if drift > 0 else "back"
        return f"the clock was moved {way} by {ago(abs(drift))} since the last sweep"
    return ""
