"""Sums up an agent's events while they come in. Pure; used by `supervision`, read by `finish`."""

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
    """Joins the pieces of a text to one event, and drops a count that is repeated with each part of
    an answer. The result depends only on the events, not on time, so a second reading gives the
    same result."""

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    carried: ContextSeen | None = None

    def add(self, event: AgentEvent) -> list[AgentEvent]:
        """Return the events that are complete now, in order."""
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
        """Return the remaining text as an event, when nothing more can come."""
        text, self.pieces, self.length = "".join(self.pieces), [], 0
        if text:
            return [Said(text)]
        return []


class CutReply(Struct, frozen=True):
    """A reply that the agent's end cut off. `seen`: what was reported of it; None: nothing was.
    `missing`: the estimate of the rest. `most`: the same for a long reply."""

    seen: Reply | None
    missing: Usage
    most: Usage


class EventTotals(Struct):
    """The sum of an attempt's events. `kept` is passed to the driver's classifier."""

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
    """Number of retries since the agent last got a complete answer."""
    refused: int = 0
    """Number of requests refused as too long. Answers in between do not reset it, because a summary
    is an answer too."""
    counted: Usage = field(default_factory=Usage)
    """Sum of the usage reported for this launch alone."""
    windows: dict[str, int] = field(default_factory=dict)
    """Context windows in tokens as the agent reports them, by model."""
    total: Usage | None = None
    """Newest total over the whole conversation, if the agent counts that way."""
    newest: Usage = field(default_factory=Usage)
    """Usage reported last for this launch alone."""
    replies: dict[str, Reply] = field(default_factory=dict)
    """Replies of the model since the agent's last final figure, by id."""
    earlier: list[Reply] = field(default_factory=list)
    """Replies before the agent's last final figure, which includes them."""
    settled: set[str] = field(default_factory=set)
    """Ids of the replies that a final figure includes."""
    replied: bool = False
    """Whether the beginning of a reply was seen. If not, the request may never have been sent."""
    revision: int = 0
    """Counter that grows with every change."""
    final: bool = False
    """Whether the agent has reported its final figure, and nothing has begun since."""
    named: bool = False
    last_reply: str = ""
    asking: bool = False
    """Whether the agent has asked its model and has reported nothing of the answer yet."""
    repeating: bool = False
    """Whether the newest thing that the agent did was to announce that it repeats a request."""
    model: str = ""
    """The model that the agent named at its start."""
    ends: OpenEnds = field(default_factory=OpenEnds)
    """The unfinished work of the turn."""
    helpers: int = 0
    """Number of helpers running in the background; the agent goes on after them."""
    tool_last: bool = False
    """Whether the newest thing that the agent printed is a tool call."""

    def absorb(self, event: AgentEvent) -> None:
        """Add one event."""
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
                # A reply that begins after the end of a turn shows that the agent went on.
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
        """Note that a final figure came: it includes every reply so far."""
        self.settled |= set(self.replies)
        self.earlier += self.replies.values()
        self.replies = {}
        self.final = True

    def count(self, reply: Reply) -> None:
        """Add the usage of a reply so far, from the agent's output or its transcript. It is ignored
        after a final figure, which includes it."""
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
        """Whether the agent's last action was a tool call. After one it asks its model again. Codex
        0.169.0 prints a call about 0.15 s after its transcript has it."""
        newest = self.replies.get(self.last_reply)
        called = newest is not None and newest.calls and not self.turn_over
        return self.tool_last or called

    def for_classifier(self) -> list[AgentEvent]:
        """Return the events that decide the outcome: retries first, then the others."""
        return [*self.retries, *self.kept]

    def usage(self, before: Usage, model: str = "") -> Usage:
        """Return the usage of this attempt: the agent's figures, plus an estimate of usage that it
        has not reported yet.

        `before`: the conversation's total at its start, if the agent counts over all of it.
        `model`: the model whose price is used for replies that name none.
        """
        used = priced(self.counted, model)
        if self.total is not None:
            used = used + priced(self.total.since(before), model)
        for reply in self.replies.values():
            seen = reply.usage
            counts = (seen.input, seen.output, seen.cached, seen.cache_write)
            told = seen if any(counts) else self._like_the_last()
            used = used + priced(told, reply.model or model, reply.hour)
        untold = bool(self.replies) or (bool(self.session_id) and not self.turn_over)
        if untold:
            return replace(used, estimated=True)
        return used

    def cut_off(self, earlier: Sequence[Reply], added: int | None) -> list[CutReply]:
        """Return an estimate of the usage that the agent could not report before it ended: the rest
        of the replies that had begun, and a request without any report.

        The input of that request is the whole conversation. An output is assumed to be as long as
        the replies before on the average; a long one is at least as long as the longest of them.

        `earlier`: replies before this attempt. `added`: tokens by which the conversation has grown
        since the last reply; None: no request was under way.
        """
        known = [*earlier, *self.replies.values()]
        outputs = [reply.usage.output for reply in known if not reply.cut and reply.usage.output]
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
        untold = Usage(input=asked, output=output, cached=cached, estimated=True)
        return [*found, CutReply(None, untold, replace(untold, output=longest))]

    def dearest(self, model: str, earlier: Sequence[Reply] = ()) -> float:
        """Return the cost of the dearest reply whose figure is known, in dollars. `model`: for
        replies that name none. `earlier`: replies before this attempt."""
        known = [*earlier, *self.earlier, *self.replies.values()]
        costs = [cost_of(reply, model) for reply in known if not reply.cut]
        return max(costs, default=0.0)

    def _like_the_last(self) -> Usage:
        """Return an estimate for a request of which only the beginning was seen. Its input is the
        previous request's input and output."""
        last = self.newest
        return Usage(
            input=last.input + last.output,
            cached=last.input,
            cost_usd=last.cost_usd,
            estimated=True,
        )


def _rest(output: int, begun: int) -> Usage:
    """Return the output that was still to come."""
    rest = max(0, output - begun)
    return Usage(output=rest, estimated=rest > 0)


def cost_of(reply: Reply, model: str) -> float:
    """Return the cost of what was reported of a reply, in dollars. `model`: if it names none."""
    return priced(reply.usage, reply.model or model, reply.hour).cost_usd
