"""The interfaces between packages. Only `perdure.wiring` chooses the implementations. Other
packages import the protocols from here.

Each protocol documents what its callers may rely on. The conformance suite in `perdure.testing`
tests this for drivers and stores, including those of other packages.
"""

from __future__ import annotations

from perdure.protocols.agents import (
    Abilities,
    AgentDriver,
    Archive,
    Asks,
    Folder,
    GoesOn,
    Heard,
    Home,
    OpenRequest,
    Parks,
    Prompt,
    Retention,
    Spoken,
    TakesMessages,
    TellsRefusals,
    TellsRequests,
    Untold,
    Warm,
)
from perdure.protocols.around import Observer, Publisher
from perdure.protocols.board import BoardRow, BoardStore, FailedAttempt, RunMarks
from perdure.protocols.counts import AtWork, CountingStore, Counts
from perdure.protocols.forges import ForgeApi
from perdure.protocols.runs import Arrival, Begun, Ending, PlacedRun, RunRow, RunStore
from perdure.protocols.stores import (
    AuditStore,
    InboxStore,
    NoticeStore,
    PlanStore,
    PostingStore,
    RequestStore,
    SessionStore,
    TokenStore,
)

__all__ = [
    "Abilities",
    "AgentDriver",
    "Archive",
    "Arrival",
    "Asks",
    "AtWork",
    "AuditStore",
    "Begun",
    "BoardRow",
    "BoardStore",
    "CountingStore",
    "Counts",
    "Ending",
    "FailedAttempt",
    "Folder",
    "ForgeApi",
    "GoesOn",
    "Heard",
    "Home",
    "InboxStore",
    "NoticeStore",
    "Observer",
    "OpenRequest",
    "Parks",
    "PlacedRun",
    "PlanStore",
    "PostingStore",
    "Prompt",
    "Publisher",
    "RequestStore",
    "Retention",
    "RunMarks",
    "RunRow",
    "RunStore",
    "SessionStore",
    "Spoken",
    "TakesMessages",
    "TellsRefusals",
    "TellsRequests",
    "TokenStore",
    "Untold",
    "Warm",
]
