"""Conversations, as perdure records them and as an agent's home has them."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from perdure.model.attempts import Snapshot
from perdure.model.choices import SessionState
from perdure.model.usage import NO_USAGE, Fill, Usage


class SessionKey(Struct, frozen=True):
    """The owner of a conversation: an agent and a scope. Agents never share a conversation."""

    agent: str
    scope: str


RESET = "reset by a person"
"""The cause of retirement of a conversation that was reset. The next attempt starts a new one and
is not told about the old one."""


class Session(Struct, frozen=True, kw_only=True, eq=False):
    """perdure's record of an agent's own conversation. At most one that is not retired exists for
    each key."""

    key: SessionKey
    id: str
    state: SessionState
    created: int
    updated: int
    cwd: str = ""
    home: str = ""
    parent: str = ""
    """The session that this one was forked from, or that it replaces."""
    cause: str = ""
    """Why it was retired."""
    context_version: int = 0
    """The newest version of the instructions that the agent has been given."""
    attempts: int = 0
    total: Usage = NO_USAGE
    """The CLI's own running total, where it counts over the whole conversation."""
    snapshot: Snapshot | None = None
    fill: Fill | None = None
    """How full the conversation was when perdure last looked."""
    prompts: tuple[str, ...] = ()
    """SHA-256 (first 16 hex digits) of every prompt that perdure sent to the conversation."""
    tasks: int = 0
    """Number of runs whose prompts the conversation was given; further instructions of the same run
    do not count."""
    lifetime_s: float = 0.0
    """Lifetime of the session: seconds without use after which it expires; 0: as the settings
    say."""
    expires: int = 0
    """When (ms) it expires, unless it is used before; 0: never."""
    revision: int = 0
    """Number of changes stored for the session's key; set by the store. Of two records, the one
    with the smaller number is older."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        return hash((self.key, self.id))

    def used(self, at: int, usual_s: float = 0.0) -> Session:
        """Return the record after a use at this time (ms). Its own lifetime, else the usual one,
        starts again."""
        lasts_s = self.lifetime_s or usual_s
        return replace(self, updated=at, expires=at + int(lasts_s * 1000) if lasts_s else 0)


def _compared(session: Session) -> list[object]:
    """Return the values that make two records equal: all but `revision`, which the store sets."""
    return [getattr(session, name) for name in session.__struct_fields__ if name != "revision"]


class Conversation(Struct, frozen=True, kw_only=True):
    """A conversation as an agent's own files show it, no matter who began it."""

    id: str
    path: str
    updated: int
    """When it was last written, in ms."""
    cwd: str = ""
    """The directory in which it began."""
    first: str = ""
    """Its first prompt."""
    turns: int = 0
    """Number of prompts; 0 if the transcript is too long to be counted cheaply."""
    parent: str = ""
    """The conversation that it was forked from, if it says so."""
