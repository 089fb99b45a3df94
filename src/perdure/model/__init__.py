"""The nouns. Everything that perdure keeps, decides on or shows is one of these.

They are frozen standard-library dataclasses, so that the cheapest verbs (`perdure ls`) pay for nothing else; their JSON
form is made and read by `codec`. Times are integer milliseconds since 1970 (UTC), durations are seconds, money is US
dollars. A new value comes from `dataclasses.replace`. Everybody imports them from here.
"""

from __future__ import annotations

from perdure.model.attempts import Attempt, Command, Continuation, Evidence, Exit, Launch, Outcome, Program, Receipt, Shown, Snapshot
from perdure.model.checkpoints import CLEAN_UP, KEEPSAKES, Checkpoint, CopyPart, Saved
from perdure.model.choices import (
    PUT_BACK,
    Backend,
    ColdCache,
    ContinuityPolicy,
    FileAction,
    MapWhen,
    Measure,
    OnEdit,
    OnExpiry,
    OutcomeKind,
    Permissions,
    Rung,
    RunState,
    SessionState,
    Standing,
    Start,
    Verdict,
    WhenFull,
)
from perdure.model.loaded import Comparison, Item, ItemKind, Loaded, Relation, compare
from perdure.model.runs import NOWHERE, UNSAVED, Claim, Condition, Decision, Host, Parking, Seat, TaskRun, Workspace
from perdure.model.sessions import RESET, Conversation, Session, SessionKey
from perdure.model.tasks import NOTHING_GIVEN, Context, FileChange, Given, TaskFile, TaskSpec
from perdure.model.tokens import Token, TokenScope
from perdure.model.usage import NO_USAGE, CompactAt, Fill, Reply, Usage

__all__ = [
    "CLEAN_UP",
    "KEEPSAKES",
    "NOTHING_GIVEN",
    "NOWHERE",
    "NO_USAGE",
    "PUT_BACK",
    "RESET",
    "UNSAVED",
    "Attempt",
    "Backend",
    "Checkpoint",
    "Claim",
    "ColdCache",
    "Command",
    "CompactAt",
    "Comparison",
    "Condition",
    "Context",
    "Continuation",
    "ContinuityPolicy",
    "Conversation",
    "CopyPart",
    "Decision",
    "Evidence",
    "Exit",
    "FileAction",
    "FileChange",
    "Fill",
    "Given",
    "Host",
    "Item",
    "ItemKind",
    "Launch",
    "Loaded",
    "MapWhen",
    "Measure",
    "OnEdit",
    "OnExpiry",
    "Outcome",
    "OutcomeKind",
    "Parking",
    "Permissions",
    "Program",
    "Receipt",
    "Relation",
    "Reply",
    "RunState",
    "Rung",
    "Saved",
    "Seat",
    "Session",
    "SessionKey",
    "SessionState",
    "Shown",
    "Snapshot",
    "Standing",
    "Start",
    "TaskFile",
    "TaskRun",
    "TaskSpec",
    "Token",
    "TokenScope",
    "Usage",
    "Verdict",
    "WhenFull",
    "Workspace",
    "compare",
]
