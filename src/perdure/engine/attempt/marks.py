"""Marks of prompts, answers and tool calls: what perdure knows of a conversation whose transcript
it cannot read.

Called by `launch`; the agent's replay is compared with them before the next prompt is sent.
"""

from __future__ import annotations

from perdure.engine.attempt.engine import HISTORY, EngineStore
from perdure.model import Session
from perdure.model.events import ItemsMarked

MOST = 2000
"""Maximum number of marks, so that they fit into one argument of a command, with room for the rest
of it."""


def known_marks(store: EngineStore, session: Session) -> tuple[str, ...]:
    """Return the newest marks that a replay of the conversation has to hold, oldest first.

    A turn that was cut off counts only with its prompt, and only if the agent answered: it is not
    known whether the agent saved the rest.
    """
    found: list[str] = []
    for run in store.runs_of(session.key):
        turns: dict[int, ItemsMarked] = {}
        for record in store.history(run.id, limit=HISTORY):
            if isinstance(record.event, ItemsMarked) and record.event.session_id == session.id:
                turns[record.attempt] = record.event
        for attempt in store.attempts(run.id):
            turn = turns.get(attempt.number)
            answered = attempt.receipt is not None and attempt.receipt.evidence.answered
            if turn is not None and (turn.ended or answered):
                found += turn.marks
    return tuple(found[-MOST:])
