"""A writer that is killed at a random moment. test_store_races.py runs it.

argv: database. Adds, claims, records and finishes runs without end, and prints a line for each
write after the call has returned. So every printed write was acknowledged.
"""

from __future__ import annotations

import os
import sys

from perdure import store as stores
from perdure.model import (
    Decision,
    Outcome,
    OutcomeKind,
    RunState,
    Session,
    SessionKey,
    SessionState,
    TaskSpec,
)
from perdure.model.events import Said
from perdure.protocols import Ending
from perdure.testing.stores.samples import place


def main(database: str) -> None:
    store = stores.open(database)
    number = 0
    while True:
        number += 1
        run = store.add(
            TaskSpec(prompt="x" * 200),
            f"{os.getpid()}-{number}",
            f"run-{os.getpid()}-{number}",
            place(f"{os.getpid()}-{number}"),
        )
        tell("added", run.id)
        claim = store.claim("writer", 60.0, run.id)
        assert claim is not None
        tell("claimed", run.id)
        session = Session(
            key=SessionKey("claude", run.scope),
            id=run.id,
            state=SessionState.PINNED,
            created=1,
            updated=1,
        )
        store.record(claim, [Said(text=f"{line}") for line in range(20)], session)
        tell("recorded", run.id)
        store.finish(
            claim,
            Ending(
                outcome=Outcome(kind=OutcomeKind.SUCCEEDED),
                decision=Decision(state=RunState.SUCCEEDED),
            ),
        )
        tell("finished", run.id)


def tell(what: str, run_id: str) -> None:
    os.write(1, f"{what} {run_id}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1])
