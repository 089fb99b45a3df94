"""The sweeper: takes away what nobody needs any more, by class and age, and never what is not saved
elsewhere.

Called by `perdure gc` and, daily, by `perdure work`; `reset` by `perdure reset`, `usage` by
`perdure du`. The story in its rooms: `inventory` lists what is there, `verdicts` decides (pure),
`sweeps` proves and does, `reset` clears what a person names and brings back what is in the trash,
`usage` measures.

What it guarantees: nothing is deleted that was not recognised; everything goes to the trash first,
and from there only what was proven to be saved, after the grace; a workdir goes only if each of its
files and commits is found elsewhere at that moment; where the clock, the volume or the amount is
not what it was, nothing goes at all, and a person is told.
"""

from __future__ import annotations

from perdure.engine.sweeper.inventory import at_work, unfinished
from perdure.engine.sweeper.reset import ResetOutcome, Target, clear, listed, purge, reset, restore
from perdure.engine.sweeper.sweeps import Sweep, due, here_and_now, next_sweep, rules_of, sweep
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
    "due",
    "here_and_now",
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
