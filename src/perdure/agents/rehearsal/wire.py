"""What the dialects put on the wire: the seam between them and the server. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Protocol, TypeAlias

from perdure.agents.rehearsal.conversation import ScriptedConversation
from perdure.agents.rehearsal.cues import Cue
from perdure.agents.rehearsal.script import Cut, Fail, Hang, Hold, Limit, Say, Slow, TokenCounts
from perdure.lateclass import dataclass

Step: TypeAlias = bytes | Slow | Hold | Hang | Cut | TokenCounts
"""Bytes to send, or what happens between them. Nothing follows a Hang or a Cut. `TokenCounts`: the
usage that was reported by now."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP error as the provider sends it."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


class Dialect(Protocol):
    """One provider's API. `headers` have lower-case names."""

    name: str

    def conversation(
        self, headers: Mapping[str, str], body: dict[str, Any]
    ) -> ScriptedConversation: ...

    def stream(self, cue: Cue, conversation: ScriptedConversation) -> Iterator[Step]:
        """The reply as server-sent events. The events of a text come apart, so that a client sees
        it grow."""
        ...

    def whole(self, cue: Cue, conversation: ScriptedConversation) -> dict[str, Any]:
        """The reply as one JSON body."""
        ...

    def refusal(self, failure: Fail | Limit, now: float) -> Refusal:
        """`now`: seconds since 1970."""
        ...


def event(name: str, payload: Mapping[str, Any]) -> bytes:
    """One server-sent event; the payload gets its `type`."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **payload})}\n\n".encode()


def paced(say: Say, seconds: float) -> Iterator[tuple[str, Slow]]:
    """The pieces of a text, each with the pause that follows it."""
    pieces = say.pieces()
    for piece in pieces:
        yield piece, Slow(seconds / len(pieces))


def items(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The JSON objects in a list of the body; what else stands there is passed over."""
    found = body.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
