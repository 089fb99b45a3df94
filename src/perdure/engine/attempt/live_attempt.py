"""A started attempt, as `opening_steps` returns it. It has the values that are needed to watch,
verify and close the attempt, and the resources that are released at its end."""

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
    """A started attempt: everything that watching and closing need."""

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
    """Lifetime in seconds of a session whose id the agent reports only later."""
    launch: Launch | None = None
    env: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Notes on what the driver changed in the user's arguments."""
    answers: bool = False
    """Whether the attempt was given answers to requests."""
    parked: tuple[str, ...] = ()
    """Ids of the calls whose answers the attempt is given in place of a prompt."""
    idle: Idle | None = None
    """The kept agent that runs this attempt as a turn; None if there is none."""

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
            # If another supervisor takes the attempt over, the agent is no longer kept: it ends
            # with its turn.
            self.idle.kept.leave()

    @property
    def directory(self) -> Path:
        return Path(self.attempt.directory)

    def transcript(self, session_id: str) -> Path | None:
        """Return the file by which a conversation is judged, as it is now; None if there is
        none."""
        return locate(self.driver, self.home, session_id, self.directory)

    @property
    def asked(self) -> Continuation:
        assert self.attempt.continuation is not None
        return self.attempt.continuation
