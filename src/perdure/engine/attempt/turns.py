"""Detects the end of a turn of a kept agent: whether the turn is over, and whether all of it is in
the transcript. Used by `supervision`.

A process that has exited has written everything. A process that stays alive may report the end of
its turn before it has written the whole turn. So the attempt is over only when the agent's last
words are in the transcript. If they do not appear, or anything still runs in the background, the
agent is not kept. The attempt then ends when the process exits, as any other attempt does.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct, field

from perdure.agents.transcripts import prompts_since, snapshot
from perdure.engine.attempt.engine import Engine
from perdure.engine.attempt.event_totals import EventTotals
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.warm_agents import Idle, compatibility_digest
from perdure.engine.prompt_file import prompt_fingerprint
from perdure.host import process
from perdure.model import Exit
from perdure.model.events import AgentKeptWarm, AgentLetGo, TurnEnded
from perdure.protocols import TurnStatus

SAVED_S = 10.0
"""Time limit in seconds for the agent to write its last words to the transcript. It begins when the
agent has reported the end of its turn."""
TAIL = 8 * 1024**2
"""Number of bytes at the end of a transcript that are searched for the agent's last words."""


class Turn(Struct):
    """One running turn of a kept agent."""

    engine: Engine
    opened: LiveAttempt
    idle: Idle
    heard: TurnStatus = field(default_factory=TurnStatus)
    over_at: float = 0.0
    decided: bool = False
    why: str = ""

    def hear(self, line: bytes) -> None:
        """Update the status of the turn from one more line of the agent's output."""
        driver = self.opened.driver
        assert driver.warm is not None
        self.heard = driver.warm.update_status(line, self.heard)

    def settle(self, reading: EventTotals) -> None:
        """Decide whether the agent is kept after its turn. Do nothing while the turn is not over.
        If the transcript does not have the whole turn yet, leave the decision to a later call, for
        at most `SAVED_S` seconds. Never wait."""
        if self.decided or not self.heard.over:
            self.over_at = 0.0
            return
        now = process.boottime()
        self.over_at = self.over_at or now
        if why := self._refusal_reason(reading):
            self._let_go(why)
        elif self._saved():
            self.decided = True
            self.idle.kept.finish_turn()
        elif now - self.over_at > SAVED_S:
            self._let_go("its last words are not in the transcript")

    def _refusal_reason(self, reading: EventTotals) -> str:
        last = next(
            (event for event in reversed(reading.kept) if isinstance(event, TurnEnded)), None
        )
        if last is None or not last.ok or reading.writes_lost:
            return "its turn did not end well"
        if self.heard.busy or reading.open_tools:
            return "something runs in the background"
        assert self.engine.warm is not None
        if self.idle.kept.turns >= self.engine.warm.keep.turns:
            return f"it has had {self.idle.kept.turns} turns"
        return ""

    def _let_go(self, why: str) -> None:
        self.decided, self.why = True, why
        self.idle.kept.end_after_turn()

    def _saved(self) -> bool:
        """Return whether the transcript has the whole turn: this attempt's prompt and the agent's
        last words."""
        session = self.opened.session
        if session is not None:
            path = self.opened.transcript(session.id)
        else:
            path = None
        if path is None:
            return False
        prompt = prompt_fingerprint(self.opened.directory)
        mark = self.heard.mark.encode()
        return (
            bool(mark)
            and mark in _tail(path)
            and prompt in prompts_since(self.opened.driver, path, self.opened.attempt.before)
        )

    def ended(self, end: Exit) -> AgentKeptWarm | AgentLetGo:
        """Keep the agent for its next turn, or end it. Return the event to be recorded in the
        journal."""
        self.opened.idle = None
        kept, session, driver = self.idle.kept, self.opened.session, self.opened.driver
        if self.opened.process is not None:
            pid = self.opened.process.agent_pid
        else:
            pid = None
        # If the keeper was asked to keep the agent, by now either the keeper has answered or the
        # agent has exited.
        resting = self.decided and not self.why and kept.is_ready()
        if (
            end.cause == "turn"
            and resting
            and session is not None
            and self.engine.warm is not None
            and self.opened.launch
        ):
            self.idle.session_id, self.idle.seen = (
                session.id,
                snapshot(driver, self.opened.transcript(session.id)),
            )
            self.idle.like, _ = compatibility_digest(
                driver, self.opened.launch, self.opened.env, session.id
            )
            self.engine.warm.give_back(self.idle, self.engine.workspaces.lock)
            return AgentKeptWarm(pid=pid or 0, turn=kept.turns, memory=kept.memory)
        kept.end()
        return AgentLetGo(
            pid=pid or 0, turn=kept.turns, reason=self.why or kept.why or "it has ended"
        )


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            return file.read()
    except OSError:
        return b""
