"""What an agent's events add up to while they come in. Pure; used by `watching`, read by `closing`."""

from __future__ import annotations

from dataclasses import field

from perdure.events import (
    MAX_TEXT,
    AgentEvent,
    ContextSeen,
    LimitSeen,
    RetrySeen,
    Said,
    SaidPart,
    SessionSeen,
    ToolEnded,
    ToolStarted,
    TurnEnded,
    TurnStarted,
    UsageSeen,
    WritesLost,
)
from perdure.lateclass import dataclass
from perdure.model import Usage

KEPT = (SessionSeen, TurnEnded, LimitSeen, WritesLost, UsageSeen)
RETRIES_KEPT = 20
TOO_LONG = 413


@dataclass(slots=True)
class Joiner:
    """Joins the pieces of a text to one event, and drops a count that is told again with each part of an answer. It goes by the events
    alone and not by time, so a second look gives the same."""

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    carried: ContextSeen | None = None

    def add(self, event: AgentEvent) -> list[AgentEvent]:
        """The events that are whole now, in order."""
        if isinstance(event, ContextSeen):
            if event == self.carried:
                return []
            self.carried = event
        if not isinstance(event, SaidPart):
            return [*self.rest(), event]
        full = self.rest() if self.length + len(event.text) > MAX_TEXT else []
        self.pieces.append(event.text)
        self.length += len(event.text)
        return full

    def rest(self) -> list[AgentEvent]:
        """What is left when nothing more can come."""
        text, self.pieces, self.length = "".join(self.pieces), [], 0
        return [Said(text)] if text else []


@dataclass(slots=True)
class Reading:
    """The sum of an attempt's events. `kept` is what the driver's classifier gets."""

    session_id: str = ""
    version: str = ""
    opened: str = ""
    replayed: int | None = None
    answered: bool = False
    writes_lost: str = ""
    turn_over: bool = False
    open_tools: dict[str, str] = field(default_factory=dict)
    kept: list[AgentEvent] = field(default_factory=list)
    retries: list[RetrySeen] = field(default_factory=list)
    retries_in_a_row: int = 0
    """Since the agent last got a whole answer."""
    refused: int = 0
    """Requests that were refused as too long, whatever answers came between: a summary is one too."""
    counted: Usage = field(default_factory=Usage)
    """The sum of what was reported for this launch alone."""
    windows: dict[str, int] = field(default_factory=dict)
    """What the agent says that its models can take, by name."""
    total: Usage | None = None
    """The newest count over the whole conversation, where the agent counts so."""

    def absorb(self, event: AgentEvent) -> None:
        """Takes one event in."""
        if isinstance(event, KEPT):
            self.kept.append(event)
        match event:
            case SessionSeen():
                self.session_id = event.session_id or self.session_id
                self.version = event.version or self.version
                self.opened = event.opened or self.opened
                self.replayed = event.replayed if event.opened else self.replayed
            case TurnStarted():
                self.turn_over = False
            case Said():
                self.answered = True
                self.turn_over = False
            case ToolStarted():
                self.answered = True
                self.turn_over = False
                self.open_tools[event.tool_id] = event.summary or event.name
            case ToolEnded():
                self.open_tools.pop(event.tool_id, None)
            case UsageSeen():
                self.retries_in_a_row = 0
                if event.cumulative:
                    self.total = event.usage
                else:
                    self.counted = self.counted + event.usage
            case ContextSeen(window=window, model=model) if window:
                self.windows[model] = window
            case RetrySeen():
                self.retries_in_a_row += 1
                self.refused += event.status == TOO_LONG
                self.retries = [*self.retries, event][-RETRIES_KEPT:]
            case WritesLost():
                self.writes_lost = event.detail
            case TurnEnded():
                self.turn_over = True
            case _:
                pass

    def for_classifier(self) -> list[AgentEvent]:
        """The events that decide on the outcome, in their order of kind."""
        return [*self.retries, *self.kept]

    def usage(self, before: Usage) -> Usage:
        """What this attempt cost: the difference where the agent counts over the whole conversation."""
        return self.counted if self.total is None else self.counted + self.total.since(before)
