"""Decides about messages that a person sends to a running attempt: which messages its turn may
take, how they are worded for the agent, and whether each was delivered. Pure.

A message is a version of the run's instructions. `perdure.engine.attempt.messages` puts it where
the agent's CLI finds it. If the running turn does not take the message, the next attempt's prompt
contains it, like any other new instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from perdure.model import Context
from perdure.model.events import MessageDelivered, MessageReceived, Record
from perdure.model.requests import MessageState
from perdure.model.tasks import MESSAGE_START

LONGEST = 64 * 1024
"""Maximum length of a message, in bytes of UTF-8. `perdure update` accepts longer instructions."""
INTO_TURN = 8_000
"""Maximum total length of the messages that a turn takes together, in UTF-16 units. If the output
of a hook has more than 10,000 units, Claude Code 2.1.329 replaces it with the name of a file."""


def length(text: str) -> int:
    """Return the length of a text in UTF-16 units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def pending(contexts: Iterable[Context], known: int) -> tuple[Context, ...]:
    """Return the messages that a turn can take now, oldest first. They are the versions that follow
    the version `known` without a gap. The result ends before the first version that is not a
    message or is too long. That version and all later ones wait for the next attempt."""
    found: list[Context] = []
    room = INTO_TURN
    for each in sorted(contexts, key=lambda context: context.version):
        if each.version <= known:
            continue
        room -= length(words(each))
        if not each.message or room < 0:
            break
        found.append(each)
    return tuple(found)


def words(context: Context) -> str:
    """Return a message as the text that a running turn gets. It includes the version number, which
    makes it different from every other message of the run."""
    return (
        f"{MESSAGE_START}{context.version}):\n"
        f"{context.text}\n\nAddress it as you continue this turn."
    )


def newest_in(contexts: Iterable[Context], known: int, texts: Sequence[str]) -> int:
    """Return the number of the newest version of the instructions that the conversation contains.
    `known`: the newest version before any hook added a message. `texts`: texts that hooks added to
    the conversation's turns."""
    for each in sorted(contexts, key=lambda context: context.version):
        if each.version <= known:
            continue
        if not each.message or not any(words(each) in text for text in texts):
            break
        known = each.version
    return known


def states(contexts: Iterable[Context], records: Iterable[Record]) -> tuple[MessageState, ...]:
    """Return the delivery state of each message of a run, oldest first."""
    found = {}
    for each in contexts:
        if each.message:
            found[each.version] = MessageState(version=each.version, text=each.text, told=each.at)
    for record in records:
        event = record.event
        if not isinstance(event, MessageDelivered | MessageReceived):
            continue
        known = found.get(event.version)
        if known is None:
            continue
        if isinstance(event, MessageDelivered):
            changed = msgspec.structs.replace(
                known, delivered=record.at, how=event.how, attempt=record.attempt
            )
        else:
            changed = msgspec.structs.replace(known, received=known.received or record.at)
        found[event.version] = changed
    return tuple(found[version] for version in sorted(found))


GIVEN = {
    "turn": "given to the running turn",
    "boundary": "given at the end of the running turn, which then continued",
    "prompt": "given with the prompt of the next attempt",
}
"""Words that describe how a message reached the agent, by `MessageState.how`."""


def described(state: MessageState) -> str:
    """Return the delivery state of a message in words."""
    if not state.delivered and not state.received:
        return "accepted; the agent does not have it yet"
    given = f"{GIVEN.get(state.how, 'given')} (attempt {state.attempt})"
    if state.received:
        return f"{given}; the model has it"
    return f"{given}; not seen in the conversation yet"
