"""The session service: records of conversations for callers that place tasks, and statistics of
them.

A session is a pointer to an agent's own conversation. The store's table of sessions is
authoritative; this package only reads and changes it. `service` has the verbs (create, get, update,
count, extend, close); `statistics` computes from the attempts of a period how often conversations
continued (pure); `rebuild` restores lost records from the attempts and their journal. Attempts
write their own session under their own claim; the session of a running attempt is never changed
here. The library offers the service as `Runner.sessions`.
"""

from __future__ import annotations

from perdure.engine.sessions.rebuild import missing
from perdure.engine.sessions.service import Rebuilt, Sessions, plan_scope
from perdure.engine.sessions.statistics import Statistics, statistics

__all__ = ["Rebuilt", "Sessions", "Statistics", "missing", "plan_scope", "statistics"]
