"""Data type for the state of a message that a person sent to a running attempt. `rules.messages`
makes it from the journal."""

from __future__ import annotations

import msgspec


class MessageState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a message to a running attempt. Times are in ms; 0: not yet."""

    version: int
    """Version number that the run's instructions got when this message was added."""
    text: str
    told: int
    delivered: int = 0
    """Time at which the message was last given to the agent's CLI."""
    how: str = ""
    """How the message was given: `turn` (during the running turn), `boundary` (when the turn was
    about to end) or `prompt` (with the prompt of the next attempt)."""
    attempt: int = 0
    """Number of the attempt to which the message was last given."""
    received: int = 0
    """Time at which perdure found the message in the conversation. This means that the model has
    received it."""
