"""Defines the interface between the dialects (the providers' wire formats) and the server. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeAlias

from msgspec import Struct, field

from perdure.agents.rehearsal.conversation import ScriptedConversation
from perdure.agents.rehearsal.planner import PlannedReply
from perdure.agents.rehearsal.script import Cut, Fail, Hang, Hold, Limit, Say, Slow, TokenCounts

Step: TypeAlias = bytes | Slow | Hold | Hang | Cut | TokenCounts
"""One step of an answer: bytes to send, or an action such as a pause. A Hang or a Cut is the last
step. `TokenCounts` sends nothing; it records the usage that the client has received so far."""


RequestBody: TypeAlias = Mapping[str, object]
"""JSON body of a request to the model, as the CLI sent it. The type of a value is known only after
a check."""
ReplyBody: TypeAlias = Mapping[str, object]
"""JSON body of a reply or of an error, in the provider's format."""


class Refusal(Struct, frozen=True):
    """An HTTP error response in the provider's format."""

    status: int
    body: ReplyBody
    headers: dict[str, str] = field(default_factory=dict)


class Dialect(Protocol):
    """The API of one provider. The keys of every `headers` are in lower case."""

    name: str

    def conversation(
        self, headers: Mapping[str, str], body: RequestBody
    ) -> ScriptedConversation: ...

    def stream(self, cue: PlannedReply, conversation: ScriptedConversation) -> Iterator[Step]:
        """Yield the reply as server-sent events. A text is sent in several events, as a real
        service does."""
        ...

    def whole(self, cue: PlannedReply, conversation: ScriptedConversation) -> ReplyBody:
        """Return the reply as one JSON object, for a request that is not streamed."""
        ...

    def refusal(self, failure: Fail | Limit, now: float) -> Refusal:
        """Return the provider's error response. `now`: seconds since 1970."""
        ...


def event(name: str, payload: Mapping[str, object]) -> bytes:
    """Return one server-sent event; `name` is added to the payload as its `type`."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **payload})}\n\n".encode()


def paced(say: Say, seconds: float) -> Iterator[tuple[str, Slow]]:
    """Yield the pieces of a text, each with a pause to make after it. The sum of the pauses is
    `seconds`."""
    pieces = say.pieces()
    for piece in pieces:
        yield piece, Slow(seconds / len(pieces))


def items(body: Mapping[str, object], name: str) -> list[dict[str, object]]:
    """Return the JSON objects in a list of the body; other values are skipped."""
    found = body.get(name)
    if isinstance(found, list):
        return [item for item in found if isinstance(item, dict)]
    return []
