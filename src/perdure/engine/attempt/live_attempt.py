"""Defines `LiveAttempt`, a started attempt, which `opening_steps` returns. It has the values that
are needed to supervise, verify and close the attempt, and releases its resources at the end."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from msgspec import Struct, field

from perdure.agents.transcripts import locate
from perdure.engine.attempt.warm_agents import Idle
from perdure.host import process
from perdure.model import (
    Attempt,
    Claim,
    Continuation,
    Launch,
    Session,
    Workspace,
)
from perdure.protocols import AgentDriver


class LiveAttempt(Struct, kw_only=True):
    """A started attempt, with everything that supervising and closing it needs."""

    claim: Claim
    attempt: Attempt
    driver: AgentDriver
    workspace: Workspace
    home: Path
    session: Session | None
    process: process.Process | None
    adopted: bool = False
    lock_fd: int | None = None
    lifetime_s: float = 0.0
    """Lifetime in seconds of a session that is created later, when the agent reports the id of its
    conversation."""
    launch: Launch | None = None
    env: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Notes about changes that the driver made to the user's arguments."""
    answers: bool = False
    """Whether the attempt received answers to the agent's requests."""
    parked: tuple[str, ...] = ()
    """Ids of the parked calls whose answers the attempt receives instead of a prompt."""
    idle: Idle | None = None
    """The kept agent that runs this attempt as one of its turns; None if the agent is not kept."""

    def __enter__(self) -> LiveAttempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None
        if self.idle is not None:
            # `idle` is still set, so the agent's turn is not over, and another supervisor will
            # adopt the attempt. That supervisor cannot keep the agent, which therefore ends after
            # this turn.
            self.idle.kept.leave()

    @property
    def directory(self) -> Path:
        return Path(self.attempt.directory)

    def transcript(self, session_id: str) -> Path | None:
        """Return the file with the present transcript of a conversation; None if there is none."""
        return locate(self.driver, self.home, session_id, self.directory)

    @property
    def asked(self) -> Continuation:
        assert self.attempt.continuation is not None
        return self.attempt.continuation
