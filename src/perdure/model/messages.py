"""The state of a message that a person told a running attempt. `rules.messages` finds it out."""

from __future__ import annotations

import msgspec


class MessageState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a message. Times are in ms; 0: not yet."""

    version: int
    """The version of the instructions that it is."""
    text: str
    told: int
    delivered: int = 0
    """When it was last given to the agent's CLI."""
    how: str = ""
    """How it was given: `turn` (into the running turn), `boundary` (when the turn was about to end)
    or `prompt` (with the prompt of the next attempt)."""
    attempt: int = 0
    """The attempt that it was last given to."""
    received: int = 0
    """When it was seen in the conversation, so that the model has it."""
