"""Data types for requests and for messages to a running agent.

A request is a question of an agent to a person, or an approval that the agent needs. A run whose
attempt ended with requests waits in state `queued` until each of them is answered or has expired.
`rules.requests` makes the requests from the agent's own report. They are stored when the attempt
ends. A `MessageState` is the state of a message that a person sent to a running attempt.
`rules.messages` makes it from the journal.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct


class RequestKind(StrEnum):
    """The kind of a request. `approval`: a tool call was not allowed. `question`: the agent asks
    something."""

    APPROVAL = "approval"
    QUESTION = "question"


class RequestState(StrEnum):
    """The state of a request. `open`: it waits for an answer. `expired`: nobody answered in time,
    which counts as a refusal. `superseded`: something else happened to the run first, such as new
    instructions."""

    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


class AnswerKind(StrEnum):
    """The kinds of answers to a request. `text` is the answer to a question."""

    ALLOW = "allow"
    DENY = "deny"
    TEXT = "text"


class OpenCall(Struct, frozen=True, kw_only=True):
    """A tool call that was not run, as the agent's CLI reports it at the end of a turn."""

    call: str
    """Id of the call in the conversation."""
    tool: str
    input: str
    """The complete arguments of the call as JSON."""
    summary: str = ""
    """The main argument of the call, as in `ToolStarted`."""
    parked: bool = False
    """Whether the call waits in the conversation, where the CLI can still run it."""


class AgentRequest(Struct, frozen=True, kw_only=True):
    """A request of an agent. `number` counts the requests of a run from 1."""

    run: str
    number: int
    attempt: int
    """Number of the attempt in which the agent asked."""
    kind: RequestKind
    tool: str
    call: str
    summary: str
    payload: str
    """Arguments of the call as JSON, without secrets. Very long arguments are cut."""
    size: int
    """Length of the complete arguments in characters."""
    sha256: str
    """Digest of the tool's name and the original arguments. Only a call with this digest is run."""
    parked: bool
    """Whether the call itself waits in the conversation. If not, the agent gets the answer in its
    next prompt and has to repeat the call."""
    asked: int
    expires: int
    state: RequestState = RequestState.OPEN
    answer: AnswerKind | None = None
    words: str = ""
    """Text of the person: the answer to a question, or why a call was refused."""
    by: str = ""
    """The person or program that answered."""
    rule: str = ""
    """Description of the saved rule that answered; empty if a person answered."""
    via: str = ""
    """Comment on a forge that gave the answer, as `source/id`; empty if it came in another way."""
    answered: int = 0
    given: int = 0
    """Number of the newest attempt that got the answer; 0: none yet."""


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
