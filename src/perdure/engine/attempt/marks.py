"""Lists the marks of a conversation whose transcript perdure cannot read. A mark is a hash of a
prompt, an answer or a tool call, taken from the journal.

Called by `launch`. When the agent replays the conversation, the replay is compared with the marks
before the next prompt is sent.
"""

from __future__ import annotations

from perdure.engine.attempt.engine import HISTORY, EngineStore
from perdure.model import Session
from perdure.model.events import ItemsMarked

MOST = 2000
"""Maximum number of marks that are compared with a replay. All of them are passed in one
command-line argument, and the length of an argument is limited."""


def known_marks(store: EngineStore, session: Session) -> tuple[str, ...]:
    """Return the newest marks that a replay of the conversation must contain, oldest first.

    It is unknown whether the agent saved all of a turn that was cut off. Such a turn contributes
    only its prompt, and only if the agent answered.
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
