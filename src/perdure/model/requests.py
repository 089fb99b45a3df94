"""Requests: what an agent asked a person, and the answer.

A run whose attempt ended with requests waits in state `queued` until all of them are answered or
have expired. Made by `perdure.rules.requests` from the agent's own report; stored with the end of
the attempt.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class RequestKind(StrEnum):
    """`approval`: a tool call that was not allowed. `question`: the agent asks something."""

    APPROVAL = "approval"
    QUESTION = "question"


class RequestState(StrEnum):
    """`open`: waits for an answer. `expired`: nobody answered in time, which refuses it.
    `superseded`: something else happened to the run first, such as new instructions."""

    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


class AnswerKind(StrEnum):
    """The answers to a request. `text` answers a question."""

    ALLOW = "allow"
    DENY = "deny"
    TEXT = "text"


class OpenCall(Struct, frozen=True, kw_only=True):
    """A tool call that did not run, as the agent's CLI reports it at the end of a turn."""

    call: str
    """The id of the call in the conversation."""
    tool: str
    input: str
    """The complete arguments of the call as JSON."""
    summary: str = ""
    """The main argument of the call, as in `ToolStarted`."""
    parked: bool = False
    """Whether the call waits in the conversation, so that the CLI can still run it."""


class AgentRequest(Struct, frozen=True, kw_only=True):
    """One request. `number` counts the requests of a run from 1."""

    run: str
    number: int
    attempt: int
    """The attempt in which the agent asked."""
    kind: RequestKind
    tool: str
    call: str
    summary: str
    payload: str
    """The arguments of the call as JSON, without secrets; only the beginning of very long ones."""
    size: int
    """Length of the complete arguments in characters. `payload` may be shorter."""
    sha256: str
    """Digest of tool and arguments as the agent gave them. Only a call with this digest is run."""
    parked: bool
    """Whether the call itself waits in the conversation. If not, the agent is told the answer in
    its next prompt and has to make the call again."""
    asked: int
    expires: int
    state: RequestState = RequestState.OPEN
    answer: AnswerKind | None = None
    words: str = ""
    """The person's words: the answer to a question, or why a call was refused."""
    by: str = ""
    """The person or program that answered."""
    rule: str = ""
    """The saved rule that answered instead of a person, in words."""
    via: str = ""
    """The comment on a forge that answered, as `source/id`; empty for any other way."""
    answered: int = 0
    given: int = 0
    """The newest attempt that was given the answer; 0: none yet."""
