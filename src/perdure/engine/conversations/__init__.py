"""The verbs on conversations: find one, go on with it, fork it, lend it to a person, take it back.
Called by every interface.

`search` lists the conversations that perdure knows together with those on disk; `resumption` binds
a run to a conversation, also to one that was begun manually; `forks` makes a run that begins from
the current state of another; `loans` lends a run's conversation to a person; `repair` reports what
is wrong with a transcript, and replaces it with a repaired copy.
"""

from __future__ import annotations

from perdure.engine.conversations.forks import ForkRequest, fork
from perdure.engine.conversations.loans import (
    InteractiveCommand,
    TakeBackResult,
    open_by_hand,
    take_back,
)
from perdure.engine.conversations.resumption import ResumeRequest, resume
from perdure.engine.conversations.search import ConversationEntry, ConversationIndex

__all__ = [
    "ConversationEntry",
    "ConversationIndex",
    "ForkRequest",
    "InteractiveCommand",
    "ResumeRequest",
    "TakeBackResult",
    "fork",
    "open_by_hand",
    "resume",
    "take_back",
]
