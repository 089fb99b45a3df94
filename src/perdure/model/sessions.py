"""Conversations, as perdure remembers them and as they lie in an agent's home."""

from __future__ import annotations

from dataclasses import field, replace

from perdure.lateclass import dataclass
from perdure.model.attempts import Snapshot
from perdure.model.choices import SessionState
from perdure.model.usage import NO_USAGE, Fill, Usage


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Whose conversation it is. Agents never share one."""

    agent: str
    scope: str


RESET = "reset by a person"
"""The cause of a conversation's retirement after which nothing is told of it: the next attempt
begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A pointer to the agent's own conversation. At most one that is not retired exists for each
    key."""

    key: SessionKey
    id: str
    state: SessionState
    created: int
    updated: int
    cwd: str = ""
    home: str = ""
    parent: str = ""
    """The session it was forked from, or stands in for."""
    cause: str = ""
    """Why it was retired."""
    context_version: int = 0
    """The newest version of the instructions that the agent has been given."""
    attempts: int = 0
    total: Usage = NO_USAGE
    """The CLI's own running total, where it counts over the whole conversation."""
    snapshot: Snapshot | None = None
    fill: Fill | None = None
    """As it was when perdure last looked."""
    prompts: tuple[str, ...] = ()
    """SHA-256 (first 16 hex digits) of every prompt that perdure sent into it."""
    tasks: int = 0
    """The runs whose prompts it was given; further instructions of one run do not count."""
    lifetime_s: float = 0.0
    """It expires when it was not used for so long; 0: as the settings say."""
    expires: int = 0
    """When (ms) that will be, unless it is used before; 0: never."""
    revision: int = field(default=0, compare=False)
    """Counts what was stored for its key; the store sets it. A record with a smaller one is
    older."""

    def used(self, at: int, usual_s: float = 0.0) -> Session:
        """The record after a use at this time (ms): its lifetime, or the usual one, begins anew."""
        lasts_s = self.lifetime_s or usual_s
        return replace(self, updated=at, expires=at + int(lasts_s * 1000) if lasts_s else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation as an agent's own files show it, whoever began it."""

    id: str
    path: str
    updated: int
    """When it was last written, in ms."""
    cwd: str = ""
    """The directory in which it began."""
    first: str = ""
    """Its first prompt."""
    turns: int = 0
    """Its prompts; 0 where the transcript is too long to be counted in passing."""
    parent: str = ""
    """The conversation that it is a fork of, where it says so."""
