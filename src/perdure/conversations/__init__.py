"""The verbs on conversations: find one, go on with it, fork it, give it to a person, take it back.
Called by every door.

`finding` lists what perdure knows together with what lies on disk; `resuming` binds a run to a
conversation, also to one that was begun by hand; `forking` makes a run that begins where another
one stands; `opening` lends a run's conversation to a person; `mending` says what is wrong with a
transcript, and puts a mended copy in its place.
"""

from __future__ import annotations

from perdure.conversations.finding import Entry, Shelf
from perdure.conversations.forking import Branching, fork
from perdure.conversations.opening import ByHand, TakenBack, open_by_hand, take_back
from perdure.conversations.resuming import Wanted, resume

__all__ = [
    "Branching",
    "ByHand",
    "Entry",
    "Shelf",
    "TakenBack",
    "Wanted",
    "fork",
    "open_by_hand",
    "resume",
    "take_back",
]
