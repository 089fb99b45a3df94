"""The sweeper: removes everything that is unused and saved elsewhere. Each class of items has a
maximum age.

Called by `perdure gc` and, daily, by `perdure work`. The module `reset` is called by `perdure
reset`, and `usage` by `perdure du`. `inventory` lists what exists, `verdicts` decides (pure),
`sweeps` verifies and removes, `reset` clears the work that a person names and restores entries of
the trash, `usage` measures.

Guarantees: an item that was not recognized is never deleted. Every item, except a checkpoint, first
goes to the trash. After the grace period, an entry of the trash is deleted, but only if it is
proven to be saved elsewhere. A workdir is removed only if each of its files and commits is found
elsewhere at that moment. If the clock or the volume is suspicious, nothing is removed. If too many
items of a class would be removed, none of that class is removed. In both cases the sweep asks a
person to look at it.
"""

from __future__ import annotations

from perdure.engine.sweeper.inventory import at_work, unfinished
from perdure.engine.sweeper.reset import ResetOutcome, Target, clear, listed, purge, reset, restore
from perdure.engine.sweeper.sweeps import Sweep, current_moment, due, next_sweep, rules_of, sweep
from perdure.engine.sweeper.usage import DiskUsage, usage
from perdure.engine.sweeper.verdicts import Class, Moment, Row, Rules, SweepVerdict

__all__ = [
    "Class",
    "DiskUsage",
    "Moment",
    "ResetOutcome",
    "Row",
    "Rules",
    "Sweep",
    "SweepVerdict",
    "Target",
    "at_work",
    "clear",
    "current_moment",
    "due",
    "listed",
    "next_sweep",
    "purge",
    "reset",
    "restore",
    "rules_of",
    "sweep",
    "unfinished",
    "usage",
]
