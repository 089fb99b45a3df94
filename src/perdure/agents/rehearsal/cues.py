"""Which reply comes next. Asked once by the server for each request of a conversation; safe for
many threads.

`by request` (the default): the n-th request that a script answers gets its n-th reply, whatever the
history says. A `fail` or `limit` answers a request without using the reply up; a reply with a
`hang` or `cut` is used up by the last of these. A CLI that asks again by itself after a cut gets
the next reply.

`by history`: the next reply follows from what reached the model, so that after a kill and a resume
the script goes on where the conversation stands, and a conversation that lost its history starts
over. The history is read from its beginning. A reply counts as given when all its texts and
commands stand there in its order and every command is complete; replies that are missing in between
(lost lines) are passed over. What is only the beginning of the expected reply (a text without its
command, a text cut short, a command that was interrupted) counts as not given: the whole reply is
given again. So a command that took effect just before a kill, and whose result was not yet in the
transcript, runs twice.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from perdure.agents.rehearsal.conversation import ScriptedConversation
from perdure.agents.rehearsal.script import (
    Action,
    Cut,
    Fail,
    Hang,
    Limit,
    Mark,
    Nothing,
    RunTool,
    Say,
    Script,
    ScriptedReply,
    Stop,
    TokenCounts,
)
from perdure.lateclass import dataclass


@dataclass(frozen=True, slots=True)
class Cue:
    """What to answer to one request: a failure, or actions to send."""

    actions: tuple[Action, ...] = ()
    failure: Fail | Limit | None = None
    script: int | None = None
    """Index of the script that answers; None where none matches."""
    reply: int | None = None
    """Index of the reply in its script; None after the last one."""
    waits: str = ""
    """No reply, but a call that waits on for the command of this number (Codex)."""

    @property
    def tokens(self) -> TokenCounts:
        return next(
            (action for action in reversed(self.actions) if isinstance(action, TokenCounts)),
            TokenCounts(),
        )

    @property
    def stop(self) -> str:
        """Why the answer ends, in the provider's own word; empty for the usual one."""
        return next(
            (action.reason for action in reversed(self.actions) if isinstance(action, Stop)), ""
        )


DONE: tuple[Action, ...] = (Say("Done."),)


class Player(Protocol):
    """Whatever says what comes next: scripts (`Cues`), or a model of one's own that looks at what
    reached it. Safe for many threads."""

    def next(self, conversation: ScriptedConversation) -> Cue:
        """The answer to this request; a `Cue` with a `script`, or the request is not answered."""
        ...

    def summary(self, conversation: ScriptedConversation) -> str:
        """What is answered where the CLI asks for a summary of this conversation; empty for the
        usual."""
        ...


class Cues:
    """The scripts, how far each one is, and which disturbances have already happened."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts = tuple(scripts)
        self._next = [0] * len(self.scripts)
        self._happened: dict[tuple[int, int, int], int] = {}
        self._lock = threading.Lock()

    def next(self, conversation: ScriptedConversation) -> Cue:
        """The answer to this request. `Cue()` if no script matches."""
        for number, script in enumerate(self.scripts):
            if any(script.match in prompt for prompt in conversation.prompts) or not script.match:
                with self._lock:
                    return self._answer(number, script, conversation)
        return Cue()

    def summary(self, conversation: ScriptedConversation) -> str:
        """What is answered where the CLI asks for a summary of this conversation; empty where no
        script says it."""
        matching = (
            each
            for each in self.scripts
            if not each.match or any(each.match in prompt for prompt in conversation.prompts)
        )
        return next((each.summary for each in matching if each.summary), "")

    def _answer(self, number: int, script: Script, conversation: ScriptedConversation) -> Cue:
        at = (
            position(script.replies, conversation.marks())
            if script.by_history
            else self._next[number]
        )
        for index in range(at, len(script.replies)):
            cue, used_up = self._play(number, index, script.replies[index])
            if used_up:
                self._next[number] = index + 1
            if cue.failure or any(
                isinstance(action, (Say, RunTool, Nothing, Hang, Cut)) for action in cue.actions
            ):
                return cue
        self._next[number] = len(script.replies)
        return Cue(DONE, script=number)

    def _play(self, number: int, index: int, reply: ScriptedReply) -> tuple[Cue, bool]:
        """The reply up to the first disturbance that is still due, without those that are over; and
        whether this request uses it up."""
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
                return Cue(failure=action, script=number, reply=index), False
            return Cue((*left, action), script=number, reply=index), happened == action.times
        return Cue(tuple(left), script=number, reply=index), True


def position(replies: Sequence[ScriptedReply], history: Sequence[tuple[Mark, bool]]) -> int:
    """Index of the reply after the last one that stands in the history; `len(replies)` when all
    do."""
    expected, at = 0, 0
    while at < len(history):
        length = 1
        for index in range(expected, len(replies)):
            marks = replies[index].marks
            if _stands(marks, history[at:]):
                expected, length = index + 1, len(marks)
                break
            if index == expected and (begun := _begun(marks, history[at:])):
                length = begun
                break
        at += length
    return expected


def _stands(marks: Sequence[Mark], history: Sequence[tuple[Mark, bool]]) -> bool:
    return 0 < len(marks) <= len(history) and all(
        complete and _same(mark, found)
        for mark, (found, complete) in zip(marks, history, strict=False)
    )


def _begun(marks: Sequence[Mark], history: Sequence[tuple[Mark, bool]]) -> int:
    """How many marks at the head of the history are a beginning of the reply; the last may be a
    text cut short."""
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
    return one[0] == other[0] and one[1].strip() == other[1].strip()
