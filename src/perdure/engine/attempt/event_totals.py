"""Computes the totals of an agent's events as they arrive. Pure. Used by `supervision`; `finish`
reads the result."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.model import NO_USAGE, Reply, Usage
from perdure.model.events import (
    MAX_TEXT,
    AgentEvent,
    ContextSeen,
    HelpersSeen,
    LimitSeen,
    ReplySeen,
    RequestSeen,
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
from perdure.rules.pricing import FIRST_REQUEST, REPLY, priced
from perdure.rules.unfinished import OpenEnds

KEPT = (SessionSeen, TurnEnded, LimitSeen, WritesLost, UsageSeen)
RETRIES_KEPT = 20
TOO_LONG = 413


class Joiner(Struct):
    """Joins the pieces of a text into one event, and drops repeated reports of the conversation's
    size. The result depends only on the events and not on their timing, so reading the output twice
    gives the same events."""

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    carried: ContextSeen | None = None

    def add(self, event: AgentEvent) -> list[AgentEvent]:
        """Add an event, and return the events that are now complete, in order."""
        if isinstance(event, ContextSeen):
            if event == self.carried:
                return []
            self.carried = event
        if not isinstance(event, SaidPart):
            return [*self.rest(), event]
        if self.length + len(event.text) > MAX_TEXT:
            full = self.rest()
        else:
            full = []
        self.pieces.append(event.text)
        self.length += len(event.text)
        return full

    def rest(self) -> list[AgentEvent]:
        """Return a list with one event for the text collected so far; empty if there is no text.
        Then begin a new text."""
        text, self.pieces, self.length = "".join(self.pieces), [], 0
        if text:
            return [Said(text)]
        return []


class CutReply(Struct, frozen=True):
    """A reply that was cut off when the agent ended. `seen`: the reported part; None if nothing was
    reported. `missing`: the expected usage of the rest. `most`: the usage of the rest if the whole
    reply was as long as the longest earlier reply."""

    seen: Reply | None
    missing: Usage
    most: Usage


class EventTotals(Struct):
    """Totals of an attempt's events. `kept`: the events from which the driver determines the
    outcome.

    An agent reports its usage at the end of a turn (the final figure). This figure replaces the
    usage that was counted for each of the turn's replies.
    """

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
    """Number of retries since the agent last reported usage, that is, since its last complete
    answer."""
    refused: int = 0
    """Number of requests that were refused as too long. An answer does not reset the number,
    because the summary that a compaction requests is an answer too."""
    counted: Usage = field(default_factory=Usage)
    """Sum of the agent's usage reports for this launch. Reports of the whole conversation's total
    are not included: see `total`."""
    windows: dict[str, int] = field(default_factory=dict)
    """Context windows that the agent reported, in tokens, by model."""
    total: Usage | None = None
    """Newest total of the whole conversation; None if the agent does not report such a total."""
    newest: Usage = field(default_factory=Usage)
    """The newest usage report, except reports of the whole conversation's total."""
    replies: dict[str, Reply] = field(default_factory=dict)
    """Replies of the model, by id, that no end-of-turn usage report includes yet."""
    earlier: list[Reply] = field(default_factory=list)
    """Replies of the model that an end-of-turn usage report includes."""
    subagents: dict[str, Reply] = field(default_factory=dict)
    """Replies to subagents, by id, that the agent's own figures leave out."""
    settled: set[str] = field(default_factory=set)
    """Ids of the replies that an end-of-turn usage report includes."""
    replied: bool = False
    """Whether the beginning of any reply was seen. If not, it is uncertain whether the agent sent a
    request."""
    revision: int = 0
    """Counter that is increased by every change of these totals."""
    final: bool = False
    """Whether the agent has reported its final usage, and no reply or turn has begun since."""
    named: bool = False
    last_reply: str = ""
    asking: bool = False
    """Whether the agent has sent a request to its model and has not reported any part of the answer
    yet."""
    repeating: bool = False
    """Whether the agent's newest event says that it will send a request again."""
    model: str = ""
    """The model that the agent named at its start."""
    ends: OpenEnds = field(default_factory=OpenEnds)
    """The unfinished work of the turn, such as denied tool calls and open questions."""
    helpers: int = 0
    """Number of the agent's helpers (such as subagents) that run in the background. When they end,
    the agent continues its turn."""
    tool_last: bool = False
    """Whether the newest item that the agent printed is a tool call."""

    def absorb(self, event: AgentEvent) -> None:
        """Add one event to the totals."""
        self.revision += 1
        if isinstance(event, KEPT):
            self.kept.append(event)
        self.ends.absorb(event)
        if isinstance(event, (ReplySeen, RetrySeen, UsageSeen, TurnEnded)):
            self.asking = False
        if isinstance(event, (Said, ToolStarted, ReplySeen, RetrySeen)):
            self.repeating = isinstance(event, RetrySeen)
        match event:
            case RequestSeen():
                self.asking = True
            case SessionSeen():
                self.session_id = event.session_id or self.session_id
                self.version = event.version or self.version
                self.model = event.model or self.model
                self.opened = event.opened or self.opened
                if event.opened:
                    self.replayed = event.replayed
            case TurnStarted():
                self.turn_over = self.final = self.tool_last = False
            case Said():
                self.answered = True
                self.turn_over = self.tool_last = False
            case ToolStarted():
                self.answered = True
                self.turn_over = False
                self.tool_last = True
                self.open_tools[event.tool_id] = event.summary or event.name
            case ToolEnded():
                self.open_tools.pop(event.tool_id, None)
            case UsageSeen():
                self.retries_in_a_row = 0
                self.settle()
                if event.cumulative:
                    self.total = event.usage
                else:
                    self.counted = self.counted + event.usage
                    self.newest = event.usage
            case ReplySeen(reply=reply):
                # A new reply after the end of a turn shows that the agent continued.
                known = reply.id in self.settled or reply.id in self.replies
                self.turn_over = self.turn_over and (known or not reply.id)
                self.final = self.final and (reply.id or self.last_reply) in self.settled
                self.count(reply)
            case ContextSeen(window=window, model=model) if window:
                self.windows[model] = window
            case RetrySeen():
                self.retries_in_a_row += 1
                self.refused += event.status == TOO_LONG
                self.retries = [*self.retries, event][-RETRIES_KEPT:]
            case HelpersSeen(running=running):
                self.helpers = running
            case WritesLost():
                self.writes_lost = event.detail
            case TurnEnded():
                self.turn_over = True
                self.tool_last = False
            case _:
                pass

    def settle(self) -> None:
        """Record that the agent has reported its usage at the end of a turn. That report includes
        every reply so far."""
        self.settled |= set(self.replies)
        self.earlier += self.replies.values()
        self.replies = {}
        self.final = True

    def count(self, reply: Reply) -> None:
        """Add the usage of a reply, as far as the output or the transcript reports it. Ignore a
        reply that an end-of-turn usage report already includes."""
        key = reply.id or self.last_reply
        if self.final or not key or key in self.settled or (reply.unnamed and self.named):
            return
        self.revision += 1
        self.named = self.named or not reply.unnamed
        self.last_reply = key
        self.replied = self.replied or not reply.usage.estimated or bool(reply.usage.output)
        known = self.replies.get(key)
        self.replies[key] = known.merge(reply) if known is not None else reply

    @property
    def begun(self) -> bool:
        """Whether any part of an answer of the model was seen."""
        return self.answered or self.replied or self.counted != NO_USAGE

    @property
    def asks_again(self) -> bool:
        """Whether the agent's last action was a tool call, after which it sends its model another
        request. The transcript is checked too, because Codex 0.169.0 prints a call about 0.15 s
        after writing it there."""
        newest = self.replies.get(self.last_reply)
        called = newest is not None and newest.calls and not self.turn_over
        return self.tool_last or called

    def for_classifier(self) -> list[AgentEvent]:
        """Return the events from which the driver determines the outcome. Retries come first."""
        return [*self.retries, *self.kept]

    def usage(self, before: Usage, model: str = "") -> Usage:
        """Return the usage of this attempt: the agent's own figures, plus an estimate for replies
        that these figures do not include yet, plus the replies to subagents.

        `before`: the conversation's total at the start of the attempt, for agents that report such
        totals. `model`: the model whose prices apply to replies that name no model.
        """
        used = priced(self.counted, model)
        if self.total is not None:
            used = used + priced(self.total.since(before), model)
        for reply in self.replies.values():
            seen = reply.usage
            counts = (seen.input, seen.output, seen.cached, seen.cache_write)
            told = seen if any(counts) else self._like_the_last()
            used = used + priced(told, reply.model or model, reply.hour)
        for reply in self.subagents.values():
            used = used + priced(reply.usage, reply.model or model, reply.hour)
        unreported = bool(self.replies) or (bool(self.session_id) and not self.turn_over)
        if unreported:
            return replace(used, estimated=True)
        return used

    def cut_off(self, earlier: Sequence[Reply], added: int | None) -> list[CutReply]:
        """Return estimates of the usage that the agent did not report before it ended. They cover
        replies that were cut off, and a request of which no reply was seen.

        The input of that request is estimated as the whole conversation. The output of a reply is
        assumed to have the average length of the complete replies (`missing`), or the length of the
        longest one and at least `REPLY` (`most`).

        `earlier`: replies before this attempt. `added`: tokens that were added to the conversation
        since the last reply; None if no request was under way.
        """
        known = [*earlier, *self.replies.values()]
        outputs = []
        for reply in known:
            if not reply.cut and reply.usage.output:
                outputs.append(reply.usage.output)
        output = sum(outputs) // len(outputs) if outputs else REPLY
        longest = max([REPLY, *outputs])
        found = []
        for reply in self.replies.values():
            if reply.cut:
                begun = reply.usage.output
                found.append(CutReply(reply, _rest(output, begun), _rest(longest, begun)))
        if added is None:
            return found
        last = known[-1].usage if known else Usage(input=FIRST_REQUEST)
        asked = last.input + last.output + added
        cached = asked * last.cached // last.input if last.input else 0
        unreported = Usage(input=asked, output=output, cached=cached, estimated=True)
        return [*found, CutReply(None, unreported, replace(unreported, output=longest))]

    def dearest(self, model: str, earlier: Sequence[Reply] = ()) -> float:
        """Return the cost of the most expensive complete reply, in dollars. `model`: the model
        whose prices apply to replies that name no model. `earlier`: replies before this attempt."""
        known = [*earlier, *self.earlier, *self.replies.values()]
        costs = []
        for reply in known:
            if not reply.cut:
                costs.append(cost_of(reply, model))
        return max(costs, default=0.0)

    def _like_the_last(self) -> Usage:
        """Return an estimate for a request when only the beginning of its reply was seen. The
        estimated input is the input and output of the previous request."""
        last = self.newest
        return Usage(
            input=last.input + last.output,
            cached=last.input,
            cost_usd=last.cost_usd,
            estimated=True,
        )


def _rest(output: int, begun: int) -> Usage:
    """Return the usage for the unreported part of an output. `output`: the estimated length of the
    whole output, in tokens. `begun`: the number of its tokens that were already reported."""
    rest = max(0, output - begun)
    return Usage(output=rest, estimated=rest > 0)


def cost_of(reply: Reply, model: str) -> float:
    """Return the cost of the reported part of a reply, in dollars. `model`: used if the reply names
    no model."""
    return priced(reply.usage, reply.model or model, reply.hour).cost_usd
