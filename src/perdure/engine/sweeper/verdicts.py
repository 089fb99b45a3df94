"""Decides for each item whether it is removed, and why. Pure: called by `sweeps` with the rows of
the inventory.

An item is kept if it is not recognized, is in use, has no certain age, or has changes that exist
nowhere else. `brake` limits how many of the other items one sweep removes. A mistake, such as a
wrong clock or directory, affects many items in one sweep, while ordinary use affects only a few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FEW = 10
"""Number of items of one class that a single sweep may always remove."""
SHARE = 0.2
"""Largest fraction of a class that a single sweep may remove. A sweep may always remove `FEW`
items, even from a small class."""


class Class(StrEnum):
    """The classes of items to clean up. Each has its own maximum age in the settings."""

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
    """The decision about an item. `person`: the item is kept, and a person should look at it."""

    KEEP = "keep"
    TAKE = "take"
    PERSON = "person"


class Row(Struct, frozen=True, kw_only=True):
    """One item on disk and the verdict about it. `used`: time of the item's last use, in ms since
    1970. `key`: identifies the item for `sweeps`, such as a run's id."""

    cls: Class
    name: str
    path: str
    key: str = ""
    used: int = 0
    keep: str = ""
    """Reason to keep the item whatever its age is; empty if its age decides."""
    verdict: SweepVerdict = SweepVerdict.KEEP
    why: str = ""
    bytes: int = 0
    """Disk space of the item, in bytes. It is measured only for items that are to be removed."""
    trash: str = ""
    """Path of the item's entry in the trash; empty until the item was moved there."""


class Rules(Struct, frozen=True, kw_only=True):
    """The rules for a sweep. `ages`: maximum age of the items of each class, in ms. `most`: maximum
    number of items of one class that a sweep removes."""

    ages: Mapping[Class, int]
    most: int = 200
    many: bool = False
    """Whether a person has allowed the sweep to remove any number of items."""


def judge(row: Row, rules: Rules, now: int) -> Row:
    """Return the row with a verdict. The verdict depends on the item's age and on `Row.keep`."""
    if row.cls is Class.UNKNOWN:
        return replace(row, verdict=SweepVerdict.KEEP, why=row.keep or "perdure does not know it")
    if row.keep:
        return replace(row, verdict=SweepVerdict.KEEP, why=row.keep)
    age, allowed = now - row.used, rules.ages[row.cls]
    if not row.used:
        return replace(row, verdict=SweepVerdict.KEEP, why="its age is unknown")
    if age < -HOUR_MS:
        return replace(
            row, verdict=SweepVerdict.PERSON, why="its time is in the future: check the clock"
        )
    if age < allowed:
        return replace(
            row,
            verdict=SweepVerdict.KEEP,
            why=f"last used {ago(age)} ago; kept for {ago(allowed)}",
        )
    return replace(
        row, verdict=SweepVerdict.TAKE, why=f"not used for {ago(age)}; {ago(allowed)} are allowed"
    )


def brake(rows: Sequence[Row], rules: Rules) -> list[Row]:
    """Return the rows. If a sweep would remove too many items of a class, none of that class is
    removed, and their verdict becomes `person`."""
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
    """Return the row. If its item would be removed and `why` is not empty, the verdict becomes
    `person`, with the reason `why`."""
    if why and row.verdict is SweepVerdict.TAKE:
        return replace(row, verdict=SweepVerdict.PERSON, why=why)
    return row


def ago(ms: int) -> str:
    """Return a duration as text: `40 min`, `7 h`, `3 d`."""
    if ms >= DAY_MS:
        return f"{ms // DAY_MS} d"
    if ms >= HOUR_MS:
        return f"{ms // HOUR_MS} h"
    return f"{max(ms, 0) // 60_000} min"


class Moment(Struct, frozen=True, kw_only=True):
    """The readings of both clocks at one moment. `wall`: ms since 1970. `boot`: seconds since boot,
    including time in suspend. `boot_id`: identifier of the boot."""

    wall: int
    boot: float
    boot_id: str


UNCHECKED_MS = 8 * DAY_MS
"""Maximum time between two sweeps, in ms, if the machine was restarted in between. After a longer
time, the clock is not trusted, because it may show any date."""


def clock_trouble(last: Moment | None, now: Moment) -> str:
    """Return the reason why the clock cannot be trusted, as a sentence; empty if it can be trusted.
    `last`: the readings of the clocks at the last sweep; None if there was none."""
    if last is None:
        return ""
    passed = now.wall - last.wall
    if last.boot_id != now.boot_id:
        if passed < -HOUR_MS:
            return f"the clock is {ago(-passed)} before the last sweep"
        if passed > UNCHECKED_MS:
            return (
                f"the machine was restarted, and nothing confirms that {ago(passed)} have passed "
                f"as the clock says"
            )
        return ""
    drift = passed - int((now.boot - last.boot) * 1000)
    if abs(drift) > HOUR_MS:
        way = "forward" if drift > 0 else "back"
        return f"the clock was moved {way} by {ago(abs(drift))} since the last sweep"
    return ""
