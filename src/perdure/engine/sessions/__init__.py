"""The session service: records of conversations for whoever has tasks to place, and what they show
together.

A session is a pointer to an agent's own conversation; the store's table of them is the truth, and
this room only asks and amends it. `service` has the verbs (create, get, update, count, extend,
close), `statistics` what a span of attempts says of continuity (pure), `rebuild` makes lost
records again from what the attempts and their journal tell. Attempts write their own session under
their own claim; what an attempt is at work on, nobody amends here. The library's door is
`Runner.sessions`.
"""

from __future__ import annotations

from perdure.engine.sessions.rebuild import missing
from perdure.engine.sessions.service import Rebuilt, Sessions, plan_scope
from perdure.engine.sessions.statistics import Statistics, statistics

__all__ = ["Rebuilt", "Sessions", "Statistics", "missing", "plan_scope", "statistics"]
