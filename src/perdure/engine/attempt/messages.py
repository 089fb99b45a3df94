"""Places messages for a running attempt in files, where a hook of the agent's CLI finds them, and
records which have reached the conversation. Used by `steering`, `supervision` and `finish`.

`steering.tell` stores a message as a version of the run's instructions and places it at once.
`MessageWatch` places messages that have no file yet: those from another host, and those whose
sender was killed before it could place them. Only the transcript shows whether the model has
received a message. A message that is not in it when the attempt ends becomes part of the next
attempt's prompt.

The files are in the attempt's directory of messages, which exists only if the turn takes messages:

- `N.json`: the text of version N. The file is written once, and is complete as soon as it exists.
- `armed`: exists if there are messages. Without it the agent's hook does not start Python.
- `taken-N`: the hook gave version N to the CLI. The content says when in the turn it did.

`taken-N` is created exclusively, so each message is given at most once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.engine.attempt.engine import Engine
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.model import Claim, Context
from perdure.model.events import AnyEvent, MessageDelivered, MessageReceived
from perdure.protocols import RunStore, TakesMessages
from perdure.rules.messages import newest_in
from perdure.workspace.locks import read


def directory_of(attempt_directory: Path) -> Path:
    """Return the directory for the attempt's messages, which need not exist."""
    return attempt_directory / "messages"


def place_messages(
    attempt_directory: Path, contexts: Iterable[Context], known: int
) -> tuple[int, ...]:
    """Write a file for each message that is newer than version `known` of the instructions, and
    return the versions of these messages. Write none if the turn takes no messages. Processes and
    threads may call this concurrently."""
    # Imported late, because the start of an agent does not need it.
    from perdure.rules.messages import pending, words

    directory = directory_of(attempt_directory)
    if not directory.is_dir():
        return ()
    found = pending(contexts, known)
    for each in found:
        path = directory / f"{each.version}.json"
        if path.exists():
            continue
        draft = directory / f".{each.version}-{os.getpid()}-{threading.get_ident()}"
        draft.write_text(json.dumps(words(each)), encoding="utf-8")
        draft.replace(path)
    if found:
        (directory / "armed").touch()
    return tuple(each.version for each in found)


LOOK_EVERY_S = 0.2
"""Minimum interval between two checks for messages that the hook has given to the CLI, in seconds.
"""
HOW = ("turn", "boundary")


def received_by_prompt(store: RunStore, claim: Claim) -> list[AnyEvent]:
    """Return the journal events which say that the messages in the attempt's prompt were received.
    Only called if the prompt is in the conversation."""
    if not any(each.message for each in store.contexts(claim.run.id)):
        return []
    records = store.run_events(claim.run.id)
    own = []
    for each in records:
        if each.attempt == claim.attempt:
            own.append(each.event)
    given = [event for event in own if isinstance(event, MessageDelivered)]
    found: list[AnyEvent] = []
    for event in given:
        if event.how == "prompt":
            found.append(MessageReceived(event.version))
    return found


class MessageWatch(Struct):
    """Places the messages for one attempt, and records when they reach the conversation."""

    engine: Engine
    opened: LiveAttempt
    told: int = 0
    """Version of the run's instructions up to which all messages were placed for the agent's
    hook."""
    delivered: frozenset[int] = frozenset()
    """Versions of the instructions for which the journal says that the CLI received the message."""
    looked: float = 0.0
    on: bool = False
    """Whether the turn can take messages."""

    def begin(self) -> None:
        """Read from the journal which messages were already delivered under an earlier supervisor,
        and place messages that have no file yet."""
        opened = self.opened
        directory = directory_of(opened.directory)
        self.on = isinstance(opened.driver, TakesMessages) and directory.is_dir()
        if opened.adopted:
            records = self.engine.store.run_events(opened.claim.run.id)
            own = []
            for each in records:
                if each.attempt == opened.claim.attempt:
                    own.append(each.event)
            known = []
            for event in own:
                if isinstance(event, MessageDelivered):
                    known.append(event.version)
            self.delivered = frozenset(known)
        if self.on:
            self.place()

    def place(self) -> None:
        """Write the messages that are not in the conversation yet into files for the agent's
        hook."""
        contexts = self.engine.store.contexts(self.opened.claim.run.id)
        self.told = contexts[-1].version
        # A message that cannot be placed, for example on a full disk, becomes part of the next
        # prompt.
        with suppress(OSError):
            place_messages(self.opened.directory, contexts, self.opened.attempt.context_version)

    def hear(self, newest: int) -> None:
        """Place messages that are newer than the last one placed. `newest`: the newest version of
        the run's instructions, as returned by the last heartbeat."""
        if self.on and newest > self.told:
            self.place()

    def look(self, now: float, *, last: bool = False) -> None:
        """Record new deliveries to the CLI, and messages that have newly reached the conversation.
        `last`: check even if the interval has not passed."""
        if not self.on or (now - self.looked < LOOK_EVERY_S and not last):
            return
        self.looked = now
        directory = directory_of(self.opened.directory)
        if not (directory / "armed").exists():
            return
        events: list[AnyEvent] = []
        for version, how in _accepted_by_hook(directory):
            if version not in self.delivered:
                self.delivered |= {version}
                events.append(MessageDelivered(version, how))
        received = self._received()
        opened, before = self.opened, self.opened.attempt.context_version
        events += list(map(MessageReceived, range(before + 1, received + 1)))
        if events:
            self.engine.store.record(
                opened.claim, events, received=received if received > before else 0
            )
        if received > before:
            more = opened.attempt.messages + received - before
            opened.attempt = replace(opened.attempt, context_version=received, messages=more)
            self.place()

    def _received(self) -> int:
        """Return the number of the newest version of the instructions that the conversation
        contains."""
        known = self.opened.attempt.context_version
        if not any(version > known for version in self.delivered):
            return known
        texts = _texts(self.opened)
        if not texts:
            return known
        contexts = self.engine.store.contexts(self.opened.claim.run.id)
        return newest_in(contexts, known, texts)


def _accepted_by_hook(directory: Path) -> list[tuple[int, str]]:
    """Return the versions of the messages that the hook gave to the CLI. Each is paired with the
    point in the turn at which the hook did this: `turn` or `boundary`."""
    found = []
    for path in directory.glob("taken-*"):
        number = path.name.removeprefix("taken-")
        try:
            how = read(path, 16)
        except OSError:
            continue
        if number.isdecimal() and how in HOW:
            found.append((int(number), how))
    return sorted(found)


def _texts(opened: LiveAttempt) -> Sequence[str]:
    """Return the texts that the agent's hook added to the conversation during this attempt, as the
    transcript has them."""
    session, driver = opened.session, opened.driver
    path = opened.transcript(session.id) if session is not None else None
    if path is None or not isinstance(driver, TakesMessages):
        return ()
    before = opened.attempt.before
    try:
        with path.open("rb") as file:
            if before is not None and str(path) == before.path:
                file.seek(before.size)
            return driver.messages(file.read())
    except OSError:
        return ()
