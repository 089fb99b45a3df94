"""The seams. Who implements them is chosen in `perdure.wiring` and nowhere else; everybody imports
them from here.

Each protocol says what its callers may rely on; `perdure.testing` has the conformance suite that
proves it, for drivers and stores from outside as well.
"""

from __future__ import annotations

from perdure.protocols.agents import (
    Abilities,
    AgentDriver,
    Archive,
    Folder,
    Heard,
    Home,
    Prompt,
    Retention,
    Spoken,
    Untold,
    Warm,
)
from perdure.protocols.around import Observer, Publisher
from perdure.protocols.board import BoardRow, BoardStore, FailedAttempt
from perdure.protocols.counts import AtWork, CountingStore, Counts
from perdure.protocols.forges import ForgeApi
from perdure.protocols.runs import Arrival, Begun, Ending, PlacedRun, RunRow, RunStore
from perdure.protocols.stores import InboxStore, PlanStore, PostingStore, SessionStore, TokenStore

__all__ = [
    "Abilities",
    "AgentDriver",
    "Archive",
    "Arrival",
    "AtWork",
    "Begun",
    "BoardRow",
    "BoardStore",
    "CountingStore",
    "Counts",
    "Ending",
    "FailedAttempt",
    "Folder",
    "ForgeApi",
    "Heard",
    "Home",
    "InboxStore",
    "Observer",
    "PlacedRun",
    "PlanStore",
    "PostingStore",
    "Prompt",
    "Publisher",
    "Retention",
    "RunRow",
    "RunStore",
    "SessionStore",
    "Spoken",
    "TokenStore",
    "Untold",
    "Warm",
]
