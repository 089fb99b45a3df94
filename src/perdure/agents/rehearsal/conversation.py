"""The content of a request to the rehearsed model, and the choice of its reply.

- `ScriptedConversation`: a request of any dialect in a common form. It has the messages with their
  roles, without those that the CLI itself adds. Created by the dialects. Read by `ReplyPlanner`,
  and by every test that checks which history reached the model.
- `ReplyPlanner`: chooses the next reply from scripts. The server asks it once for each request of a
  conversation. Thread-safe.
- `Dialect`: the interface between the server and the dialects, which implement the providers' wire
  formats.

A script chooses its next reply in one of two ways.

`by request` (the default): the n-th request that a script answers gets the script's n-th reply,
independent of the history. A `fail` or `limit` answers a request without using the reply up. A
reply with a `hang` or `cut` is used up when that line has taken effect for the last time (`xK`). A
CLI that retries on its own after a cut gets the next reply.

`by history`: the next reply depends on the history that reached the model. After a kill and a
resume, the script continues at the right place. A conversation that lost its history starts over.
The history is read from its beginning:

- A reply counts as given if all its texts and commands are there in order and every command is
  complete.
- Missing replies in between (lost lines) are skipped.
- A reply is given again if only its beginning is there: a text without its command, a text cut
  short, an interrupted command. So a command runs twice if it took effect just before a kill but
  has no result in the transcript yet.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from msgspec import Struct, field

from perdure.agents.rehearsal.script import (
    Action,
    Cut,
    Fail,
    Hang,
    Hold,
    Limit,
    Mark,
    Nothing,
    RunTool,
    Say,
    Script,
    ScriptedReply,
    Slow,
    Stop,
    TokenCounts,
)


class ChatMessage(Struct, frozen=True):
    """One message or tool call. `role` is `user`, `assistant`, `tool_call` or `tool_result`."""

    role: str
    text: str
    """Text of a message. For a call of the shell tool, the command. For a call of another tool, the
    tool's name and its arguments as JSON."""
    call: str = ""
    """Id that connects a `tool_call` with its `tool_result`; empty for other messages."""


class ScriptedConversation(Struct, frozen=True):
    """The content of one request to the model."""

    messages: tuple[ChatMessage, ...]
    session: str = ""
    """The CLI's own id of the conversation, from headers or body; empty if the CLI sent none."""
    side: bool = False
    """Whether the request is not part of the conversation itself. Such a request asks for a title
    or a summary, or does other work of the CLI's own."""
    summary: str = ""
    """Format of the reply that the CLI expects, with `{}` in place of the summary. Set only for a
    request that asks for a summary to continue the conversation with. Such a request is a side
    request."""
    streamed: bool = True
    model: str = ""
    shell: str = ""
    """Name of the shell tool that the CLI offers in the request."""
    waiting: str = ""
    """Number of a command that is still running, according to the last tool result. Empty if no
    command is running. Only Codex numbers its commands."""
    added: tuple[str, ...] = ()
    """Texts that the CLI itself added between the messages, such as reminders and the output of
    hooks. Only filled for Claude Code."""
    unfinished: frozenset[str] = frozenset()
    """Ids of the tool calls whose result says that the command is still running."""

    @property
    def prompts(self) -> list[str]:
        """Return the user's prompts, in order."""
        return [message.text for message in self.messages if message.role == "user"]

    def marks(self) -> list[tuple[Mark, bool]]:
        """Return the model's texts and tool calls in order. The second value of each pair tells
        whether the text or call is complete.

        A text is always complete. A tool call is complete if it has a result, unless the result
        says that the call was interrupted or its command was killed. A prompt becomes the
        incomplete mark ("user", ""), so that no scripted reply matches texts on both sides of it.
        """
        results = {}
        for message in self.messages:
            if message.role == "tool_result":
                results[message.call] = message.text
        found: list[tuple[Mark, bool]] = []
        for message in self.messages:
            if message.role == "assistant":
                found.append((("say", message.text), True))
            elif message.role == "user":
                found.append((("user", ""), False))
            elif message.role == "tool_call":
                result = results.get(message.call)
                complete = (
                    result is not None
                    and not _INTERRUPTED.search(result)
                    and message.call not in self.unfinished
                )
                found.append((("run", message.text), complete))
        return found


_INTERRUPTED = re.compile(
    r"\A\[Tool call interrupted"  # Claude Code 2.1.329, if the CLI was killed
    r"|\A\[Request interrupted"  # Claude Code, if the CLI was interrupted by SIGINT
    r"|\A\[Tool execution was interrupted\]"  # OpenCode 1.18.33, if the CLI was killed
    r"|\AExit code (137|143)\b"  # Claude Code, if the command was killed together with the CLI
    # Codex 0.169.0, if the CLI was killed or its app server was asked to end
    r"|\A(Wall time: .*\n)?aborted( by user\b.*)?\Z"
    # Codex, if the command was killed
    r"|\AChunk ID: .*\nWall time: .*\nProcess exited with code (137|143)\b"
)


class PlannedReply(Struct, frozen=True):
    """The answer to one request: a failure to report, or the actions to carry out."""

    actions: tuple[Action, ...] = ()
    failure: Fail | Limit | None = None
    script: int | None = None
    """Index of the script that this answer is taken from; None if no script matches."""
    reply: int | None = None
    """Index of the reply in its script; None if the script has no reply left."""
    waits: str = ""
    """Number of the command for which the CLI has to wait further; empty if there is none. Only
    Codex numbers its commands. With a number, the answer is a tool call that waits for this
    command."""

    @property
    def tokens(self) -> TokenCounts:
        for action in reversed(self.actions):
            if isinstance(action, TokenCounts):
                return action
        return TokenCounts()

    @property
    def stop(self) -> str:
        """Return the stop reason that the script sets with a `stop` line. Empty if the provider's
        usual stop reason is to be sent."""
        for action in reversed(self.actions):
            if isinstance(action, Stop):
                return action.reason
        return ""

    @property
    def runs_tool(self) -> bool:
        return any(isinstance(action, RunTool) for action in self.actions)

    @property
    def is_answer(self) -> bool:
        """Whether the actions send something, or end the request without an answer."""
        sent = (Say, RunTool, Nothing, Hang, Cut)
        return any(isinstance(action, sent) for action in self.actions)

    @property
    def pauses(self) -> list[Slow | Hold | Hang | Cut]:
        """The pauses and disturbances among the actions, in order."""
        return [action for action in self.actions if isinstance(action, (Slow, Hold, Hang, Cut))]


DONE: tuple[Action, ...] = (Say("Done."),)


class ReplySource(Protocol):
    """Chooses the answers of the rehearsal. Implemented by `ReplyPlanner` with scripts, or by a
    custom model that computes answers from the conversation. Must be thread-safe."""

    def next(self, conversation: ScriptedConversation) -> PlannedReply:
        """Return the answer to this request. If the source has no answer, return a `PlannedReply`
        whose `script` is None."""
        ...

    def summary(self, conversation: ScriptedConversation) -> str:
        """Return the text to send when the CLI requests a summary of this conversation. An empty
        text means that the default text is sent."""
        ...


class ReplyPlanner:
    """Chooses the answers from scripts. Stores the position in each script, and how many times each
    disturbance (such as a hang) has happened."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts = tuple(scripts)
        self._next = [0] * len(self.scripts)
        self._happened: dict[tuple[int, int, int], int] = {}
        self._lock = threading.Lock()

    def next(self, conversation: ScriptedConversation) -> PlannedReply:
        """Return the answer to this request. Return `PlannedReply()` if no script matches."""
        for number, script in enumerate(self.scripts):
            if _is_meant(script, conversation):
                with self._lock:
                    return self._answer(number, script, conversation)
        return PlannedReply()

    def summary(self, conversation: ScriptedConversation) -> str:
        """Return the text to send when the CLI requests a summary of this conversation. Empty if no
        matching script has one."""
        for each in self.scripts:
            if each.summary and _is_meant(each, conversation):
                return each.summary
        return ""

    def _answer(
        self, number: int, script: Script, conversation: ScriptedConversation
    ) -> PlannedReply:
        if script.by_history:
            at = position(script.replies, conversation.marks())
        else:
            at = self._next[number]
        for index in range(at, len(script.replies)):
            cue, used_up = self._plan_reply(number, index, script.replies[index])
            if used_up:
                self._next[number] = index + 1
            if cue.failure or cue.is_answer:
                return cue
        self._next[number] = len(script.replies)
        return PlannedReply(DONE, script=number)

    def _plan_reply(
        self, number: int, index: int, reply: ScriptedReply
    ) -> tuple[PlannedReply, bool]:
        """Return the actions of a scripted reply up to the next disturbance (such as a hang) that
        must still happen. The second value tells whether this request uses the scripted reply up.
        """
        left: list[Action] = []
        for place, action in enumerate(reply.actions):
            if not isinstance(action, (Fail, Limit, Hang, Cut)):
                left.append(action)
                continue
            happened = self._happened.get((number, index, place), 0) + 1
            if happened > action.times:
                continue
            self._happened[number, index, place] = happened
            if isinstance(action, (Fail, Limit)):
                return PlannedReply(failure=action, script=number, reply=index), False
            return PlannedReply(
                (*left, action), script=number, reply=index
            ), happened == action.times
        return PlannedReply(tuple(left), script=number, reply=index), True


def position(replies: Sequence[ScriptedReply], history: Sequence[tuple[Mark, bool]]) -> int:
    """Return the index of the reply to give next: the one after the last reply that is in the
    history. It is `len(replies)` if all replies have been given."""
    expected, at = 0, 0
    while at < len(history):
        length = 1
        for index in range(expected, len(replies)):
            marks = replies[index].marks
            if _matches_history(marks, history[at:]):
                expected, length = index + 1, len(marks)
                break
            if index == expected and (begun := _matching_marks(marks, history[at:])):
                length = begun
                break
        at += length
    return expected


def _is_meant(script: Script, conversation: ScriptedConversation) -> bool:
    """Return whether the script is for a conversation with these prompts."""
    return not script.match or any(script.match in prompt for prompt in conversation.prompts)


def _matches_history(marks: Sequence[Mark], history: Sequence[tuple[Mark, bool]]) -> bool:
    if not 0 < len(marks) <= len(history):
        return False
    pairs = zip(marks, history, strict=False)
    return all(complete and _same(mark, found) for mark, (found, complete) in pairs)


def _matching_marks(marks: Sequence[Mark], history: Sequence[tuple[Mark, bool]]) -> int:
    """Compare the reply's marks with the history, in order, and return how many of them match
    before the first difference. A text that was cut short counts as a match too: the history then
    has only the beginning of the text at that point."""
    length = 0
    for mark, (found, _) in zip(marks, history, strict=False):
        if not _same(mark, found):
            cut_short = mark[0] == found[0] == "say" and mark[1].strip().startswith(
                found[1].strip()
            )
            return length + cut_short
        length += 1
    return length


def _same(one: Mark, other: Mark) -> bool:
    return one[0] == other[0] and _comparable(one[1]) == _comparable(other[1])


def _comparable(text: str) -> str:
    """Return the text in the form in which two texts are compared: stripped, with a replacement
    character for half a surrogate pair. Claude Code 2.1.329 sends such a character in place of half
    a pair. If the script's text kept the half, the scripted call would not be found in the history
    and would be sent again forever."""
    return _HALF_PAIR.sub(lambda found: found[1] or r"\ufffd", text.strip())


_HALF_PAIR = re.compile(r"(\\ud[89ab]..\\ud[c-f]..)|\\ud[89a-f]..")
"""Pattern of half of a surrogate pair, as escaped in JSON. The pattern also matches a whole pair,
in its group, so that `_comparable` can keep the pair."""

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
