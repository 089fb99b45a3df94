"""The end of one turn of an agent that is to be kept: is it over, and does all of it stand in the
transcript? Used by `supervision`.

A process that ends has written everything. One that goes on has not, when it says that its turn is
over: so the transcript is looked at, and the attempt is over when the agent's last words stand in
it. Where they do not come, or where anything goes on in the background, the agent is let go: then
the attempt ends as every other does, when the process does.
"""

from __future__ import annotations

import os
from dataclasses import field
from pathlib import Path

from perdure.agents.transcripts import fingerprint, prompts_since, snapshot
from perdure.engine.attempt.engine import Engine
from perdure.engine.attempt.event_totals import EventTotals
from perdure.engine.attempt.live_attempt import Opened
from perdure.engine.attempt.warm_agents import Idle, likeness
from perdure.host import process
from perdure.lateclass import dataclass
from perdure.model import Exit
from perdure.model.events import AgentKeptWarm, AgentLetGo, TurnEnded
from perdure.protocols import Heard

SAVED_S = 10.0
"""What an agent gets to write its last words down, after it has said that its turn is over."""
TAIL = 8 * 1024**2
"""Bytes at the end of a transcript in which they are looked for."""


@dataclass(slots=True)
class Turn:
    """One turn of a kept agent, on its way to its end."""

    engine: Engine
    opened: Opened
    idle: Idle
    heard: Heard = field(default_factory=Heard)
    over_at: float = 0.0
    decided: bool = False
    why: str = ""

    def hear(self, line: bytes) -> None:
        """One more line of its output."""
        driver = self.opened.driver
        assert driver.warm is not None
        self.heard = driver.warm.hear(line, self.heard)

    def settle(self, reading: EventTotals) -> None:
        """Lets the agent rest, or go, as soon as its turn is over. Returns at once."""
        if self.decided or not self.heard.over:
            self.over_at = 0.0
            return
        now = process.boottime()
        self.over_at = self.over_at or now
        if why := self._against(reading):
            self._let_go(why)
        elif self._saved():
            self.decided = True
            self.idle.kept.rest()
        elif now - self.over_at > SAVED_S:
            self._let_go("its last words do not stand in the transcript")

    def _against(self, reading: EventTotals) -> str:
        last = next(
            (event for event in reversed(reading.kept) if isinstance(event, TurnEnded)), None
        )
        if last is None or not last.ok or reading.writes_lost:
            return "its turn did not end well"
        if self.heard.busy or reading.open_tools:
            return "something goes on in the background"
        assert self.engine.warm is not None
        if self.idle.kept.turns >= self.engine.warm.keep.turns:
            return f"it has had {self.idle.kept.turns} turns"
        return ""

    def _let_go(self, why: str) -> None:
        self.decided, self.why = True, why
        self.idle.kept.let_go()

    def _saved(self) -> bool:
        """Whether the turn stands in the transcript: this attempt's prompt, and the agent's last
        words."""
        session = self.opened.session
        path = self.opened.transcript(session.id) if session is not None else None
        if path is None:
            return False
        prompt = fingerprint(
            (self.opened.directory / "prompt.md").read_text(
                encoding="utf-8", errors="surrogatepass"
            )
        )
        mark = self.heard.mark.encode()
        return (
            bool(mark)
            and mark in _tail(path)
            and prompt in prompts_since(self.opened.driver, path, self.opened.attempt.before)
        )

    def ended(self, end: Exit) -> AgentKeptWarm | AgentLetGo:
        """The attempt is over: the agent waits for its next turn, or is gone."""
        self.opened.idle = None
        kept, session, driver = self.idle.kept, self.opened.session, self.opened.driver
        pid = self.opened.process.agent_pid if self.opened.process is not None else None
        # What was told to rest has answered, or is gone.
        resting = self.decided and not self.why and kept.rested()
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
            self.idle.like, _ = likeness(driver, self.opened.launch, self.opened.env, session.id)
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
