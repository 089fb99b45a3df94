"""One of several processes that claim and finish runs as fast as they can. test_store_races.py runs
it.

argv: database, worker name, seed. Prints a line `run attempt` for each claim. Fails if another
running run holds the same workspace or conversation.
"""

from __future__ import annotations

import random
import sys
import time

from perdure import store as stores
from perdure.model import Decision, Outcome, OutcomeKind, RunState
from perdure.protocols import Ending
from perdure.store.sql import SqlStore


def main(database: str, worker: str, seed: int) -> None:
    dice = random.Random(seed)
    store = stores.open(database)
    held, told = [], []
    while True:
        claim = store.claim(worker, 60.0)
        if claim is not None:
            held.append(claim)
            told.append(f"{claim.run.id} {claim.attempt}")
            if dice.random() < 0.2:
                look(store)
        elif not held and not store.find([RunState.QUEUED], limit=1):
            break
        elif not held:
            time.sleep(0.002)
        if held and (claim is None or len(held) > 3 or dice.random() < 0.5):
            done = held.pop(dice.randrange(len(held)))
            state = RunState.SUCCEEDED if done.attempt == 2 else RunState.QUEUED
            store.finish(
                done,
                Ending(outcome=Outcome(kind=OutcomeKind.SUCCEEDED), decision=Decision(state=state)),
            )
    store.close()
    print("\n".join(told))


def look(store: SqlStore) -> None:
    """Check that no two running runs hold the same workspace or conversation."""
    running = store.claims()
    for holders in (
        [c.run.workspace and c.run.workspace.id for c in running],
        [c.run.scope for c in running],
    ):
        assert len(holders) == len(set(holders)), holders


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
