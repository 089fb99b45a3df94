"""Data types for conversations: perdure's records of them (sessions), and conversations found in an
agent's home."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from perdure.model.attempts import Snapshot
from perdure.model.choices import SessionState
from perdure.model.usage import NO_USAGE, Fill, Usage


class SessionKey(Struct, frozen=True):
    """The agent and the scope that a conversation belongs to. Agents never share a conversation."""

    agent: str
    scope: str


RESET = "reset by a person"
"""Reason for retiring a conversation that was reset. The next attempt starts a new conversation and
is not told about the old one."""


class Session(Struct, frozen=True, kw_only=True, eq=False):
    """perdure's record of one conversation of an agent. Each key has at most one session that is
    not retired."""

    key: SessionKey
    id: str
    state: SessionState
    created: int
    updated: int
    cwd: str = ""
    home: str = ""
    parent: str = ""
    """Id of the session that this one was forked from, or that it replaces."""
    cause: str = ""
    """Reason why the session was retired."""
    context_version: int = 0
    """Newest version of the instructions that the agent got in this conversation."""
    attempts: int = 0
    total: Usage = NO_USAGE
    """Total usage that the CLI reported for the conversation. Set only if the CLI reports such
    totals."""
    snapshot: Snapshot | None = None
    fill: Fill | None = None
    """How full the conversation was when perdure last checked it."""
    prompts: tuple[str, ...] = ()
    """SHA-256 (first 16 hex digits) of every prompt that perdure sent to the conversation."""
    tasks: int = 0
    """Number of runs whose prompts the conversation contains. Further instructions of the same run
    do not count."""
    lifetime_s: float = 0.0
    """Time without use after which the session expires, in seconds; 0: the setting's value."""
    expires: int = 0
    """Time (ms) at which the session expires unless it is used before; 0: never."""
    revision: int = 0
    """Revision number, set by the store for each change of a session with this key. Of two records,
    the one with the smaller number is older."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        return hash((self.key, self.id))

    def used(self, at: int, usual_s: float = 0.0) -> Session:
        """Return the record after a use at the time `at` (ms), with a new expiry time. `usual_s`:
        the lifetime in seconds if the session has none of its own."""
        lasts_s = self.lifetime_s or usual_s
        return replace(self, updated=at, expires=at + int(lasts_s * 1000) if lasts_s else 0)


def _compared(session: Session) -> list[object]:
    """Return the values that are compared for equality: all fields except `revision`, which the
    store sets."""
    found = []
    for name in session.__struct_fields__:
        if name != "revision":
            found.append(getattr(session, name))
    return found


class Conversation(Struct, frozen=True, kw_only=True):
    """A conversation as the agent's own files describe it, no matter who began it."""

    id: str
    path: str
    updated: int
    """Time of the last write, in ms."""
    cwd: str = ""
    """Directory in which the conversation began."""
    first: str = ""
    """Text of the first prompt."""
    turns: int = 0
    """Number of prompts; 0 if the transcript is too long to count them quickly."""
    parent: str = ""
    """Id of the conversation that this one was forked from, if the transcript names it."""
