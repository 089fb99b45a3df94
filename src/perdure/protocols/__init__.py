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
    ContinuesSilently,
    CountsSubagents,
    Folder,
    Home,
    OpenRequest,
    Parks,
    Prompt,
    ReadsDenials,
    Retention,
    SpokenMessage,
    TakesMessages,
    TellsRefusals,
    TellsRequests,
    TurnStatus,
    Warm,
)
from perdure.protocols.around import Observer, Publisher
from perdure.protocols.board import (
    BoardRow,
    BoardStore,
    CountingStore,
    Counts,
    FailedAttempt,
    RunningRuns,
    RunProperties,
)
from perdure.protocols.forges import ForgeApi
from perdure.protocols.runs import Arrival, Begun, Ending, PlacedRun, RunRow, RunStore
from perdure.protocols.stores import (
    AuditStore,
    DeviceStore,
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
    "AuditStore",
    "Begun",
    "BoardRow",
    "BoardStore",
    "ContinuesSilently",
    "CountingStore",
    "Counts",
    "CountsSubagents",
    "DeviceStore",
    "Ending",
    "FailedAttempt",
    "Folder",
    "ForgeApi",
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
    "ReadsDenials",
    "RequestStore",
    "Retention",
    "RunProperties",
    "RunRow",
    "RunStore",
    "RunningRuns",
    "SessionStore",
    "SpokenMessage",
    "TakesMessages",
    "TellsRefusals",
    "TellsRequests",
    "TokenStore",
    "TurnStatus",
    "Warm",
]
