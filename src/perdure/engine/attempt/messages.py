"""Follows the messages for a running attempt into its conversation. Used by `supervision`,
`preparation` and `finish`; `message_places` says where they are.

Whether the model has a message is decided by the transcript alone. One that is not in it when the
attempt ends is given to the next attempt in its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from perdure.engine.attempt.engine import HISTORY, Engine
from perdure.engine.attempt.live_attempt import LiveAttempt
from perdure.engine.attempt.message_places import directory_of, place_messages
from perdure.model import Claim
from perdure.model.events import AnyEvent, MessageDelivered, MessageReceived
from perdure.protocols import RunStore, TakesMessages
from perdure.rules.messages import newest_in
from perdure.workspace.locks import read

LOOK_EVERY_S = 0.2
"""Interval between two looks for a message that the agent's CLI was given, in seconds."""
HOW = ("turn", "boundary")


def received_by_prompt(store: RunStore, claim: Claim) -> list[AnyEvent]:
    """Return the events for the messages that the attempt's prompt had, which is in the
    conversation now."""
    if not any(each.message for each in store.contexts(claim.run.id)):
        return []
    records = store.history(claim.run.id, limit=HISTORY)
    own = [each.event for each in records if each.attempt == claim.attempt]
    given = [event for event in own if isinstance(event, MessageDelivered)]
    return [MessageReceived(event.version) for event in given if event.how == "prompt"]


class MessageWatch(Struct):
    """Follows the messages of one attempt into its turn."""

    engine: Engine
    opened: LiveAttempt
    told: int = 0
    """The newest version of the run's instructions that was seen."""
    delivered: frozenset[int] = frozenset()
    """Versions whose delivery is in the journal."""
    looked: float = 0.0
    on: bool = False
    """Whether the turn can take messages."""

    def begin(self) -> None:
        """Read what an earlier supervisor of the attempt recorded, and place what is missing."""
        opened = self.opened
        directory = directory_of(opened.directory)
        self.on = isinstance(opened.driver, TakesMessages) and directory.is_dir()
        if opened.adopted:
            records = self.engine.store.history(opened.claim.run.id, limit=HISTORY)
            own = [each.event for each in records if each.attempt == opened.claim.attempt]
            known = [event.version for event in own if isinstance(event, MessageDelivered)]
            self.delivered = frozenset(known)
        if self.on:
            self.place()

    def place(self) -> None:
        """Place the messages that the turn has not taken."""
        contexts = self.engine.store.contexts(self.opened.claim.run.id)
        self.told = contexts[-1].version
        # A message that cannot be placed, as on a full disk, is given with the next prompt.
        with suppress(OSError):
            place_messages(self.opened.directory, contexts, self.opened.attempt.context_version)

    def hear(self, newest: int) -> None:
        """Take note of the newest version of the run's instructions, as a heartbeat returned it."""
        if self.on and newest > self.told:
            self.place()

    def look(self, now: float, *, last: bool = False) -> None:
        """Record what the CLI was given and what has reached the conversation since."""
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
        events += [MessageReceived(version) for version in range(before + 1, received + 1)]
        if events:
            self.engine.store.record(
                opened.claim, events, received=received if received > before else 0
            )
        if received > before:
            more = opened.attempt.messages + received - before
            opened.attempt = replace(opened.attempt, context_version=received, messages=more)
            self.place()

    def _received(self) -> int:
        """Return the newest version that the conversation has."""
        known = self.opened.attempt.context_version
        if not any(version > known for version in self.delivered):
            return known
        texts = _texts(self.opened)
        if not texts:
            return known
        contexts = self.engine.store.contexts(self.opened.claim.run.id)
        return newest_in(contexts, known, texts)


def _accepted_by_hook(directory: Path) -> list[tuple[int, str]]:
    """Return the versions that the hook gave to the CLI, and how."""
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
    """Return what came into the turns of this attempt from hooks."""
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
