"""Gives a running agent a message without ending its turn. Called by every interface.

A message is first stored as a version of the run's instructions, so it cannot be lost. If the
agent's CLI accepts messages during a turn, the running turn gets it. Otherwise the prompt of the
next attempt contains it. That attempt starts as soon as the turn has ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from perdure.engine.attempt.engine import moved_to
from perdure.engine.attempt.message_places import place_messages
from perdure.engine.service import SCOPE, check_prompt
from perdure.errors import Conflict, UsageError
from perdure.host.wakeup import ring
from perdure.model import Attempt, Context, RunState, TaskRun
from perdure.protocols import RunStore
from perdure.rules.messages import LONGEST


class Told(Struct, frozen=True, kw_only=True):
    """The result of accepting a message."""

    run: TaskRun
    """The run after the message was accepted. If it ended at the same moment, it is queued again,
    with the message as new instructions."""
    version: int
    into_turn: bool
    """Whether the running turn gets the message. If not, the next attempt gets it."""
    known: bool = False
    """Whether the same message was already accepted earlier, under the same key."""


def tell(store: RunStore, state: Path, ref: str, text: str, key: str = "") -> Told:
    """Accept a message for the running attempt of a run, and return the result. Repeating the same
    key and text has no further effect. Raises UsageError, NotFound, and Conflict if the run is not
    running."""
    run = store.get(ref)
    check_message(text, LONGEST)
    if key and not SCOPE.fullmatch(key):
        raise UsageError("--key must be one line of at most 200 characters")
    known = [each for each in store.contexts(run.id) if key and each.message == key]
    if not known:
        if (moved := moved_to(state, run.id)).exists():
            raise Conflict(
                f"{run.name} was moved to {moved.read_text(encoding='utf-8').strip()}",
                f"tell it on the machine that has it now: perdure show {run.name}",
            )
        if run.state is not RunState.RUNNING:
            raise Conflict(
                f"{run.name} is not running ({run.state}), so nothing can be told to its agent",
                f'perdure update {run.name} "..."',
            )
    key = key or uuid.uuid4().hex
    run = store.update(run.id, text, message=key)
    contexts = store.contexts(run.id)
    version = next(each.version for each in contexts if each.message == key)
    attempts = store.attempts(run.id)
    taken = _placed_messages(attempts[-1], contexts) if run.state is RunState.RUNNING else ()
    ring(state)
    return Told(run=run, version=version, into_turn=version in taken, known=bool(known))


def _placed_messages(attempt: Attempt, contexts: Sequence[Context]) -> Sequence[int]:
    """Place the messages for the running turn. Return the versions of the instructions that were
    placed; empty if the turn takes no messages. If a file cannot be written now, the attempt's
    supervisor hands the messages over later."""
    if not attempt.directory or attempt.ended is not None:
        return ()
    try:
        return place_messages(Path(attempt.directory), contexts, attempt.context_version)
    except OSError:
        return ()


def check_message(text: str, limit: int) -> None:
    """Raise UsageError for a message that is empty, not valid text, or too long."""
    if not text.strip():
        raise UsageError("the message is empty", 'perdure tell NAME "your message"')
    if len(text.encode("utf-8", "surrogatepass")) > limit:
        raise UsageError(
            f"the message is longer than {limit // 1024} KiB", "perdure update takes longer text"
        )
    check_prompt(text, limit)
