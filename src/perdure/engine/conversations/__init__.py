"""Operations on conversations: find, continue and fork a conversation, open it for a person, and
take it back. Called by every interface.

`search` lists the conversations that perdure knows together with those on disk. `resumption` makes
a run continue a conversation, even one that was begun without perdure. `forks` makes a run that
begins with the current state of another run. `open_runs` hands a run's conversation to a person and
takes it back. `repair` reports what is wrong with a transcript, and replaces it with a repaired
copy.
"""

from __future__ import annotations

from perdure.engine.conversations.forks import ForkRequest, fork
from perdure.engine.conversations.open_runs import (
    InteractiveCommand,
    TakeBackResult,
    open_for_person,
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
    "open_for_person",
    "resume",
    "take_back",
]
