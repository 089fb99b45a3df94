"""One of several processes that claim and finish runs as fast as they can; run by test_store_races.py.

argv: database, worker name, seed. Prints a line `run attempt` for each claim; an assertion of its own fails if another
running run holds the same workspace or conversation.
"""

from __future__ import annotations

import random
import sys

from perdure import stores
from perdure.model import Decision, Outcome, OutcomeKind, RunState
from perdure.protocols import Ending


def main(database: str, worker: str, seed: int) -> None:
    dice = random.Random(seed)
    store = stores.open(database)
    held, told = [], []
    while True:
        claim = store.claim(worker, 60.0)
        if claim is not None:
            held.append(claim)
            told.append(f"{claim.run.id} {claim.attempt}")
            running = store.claims()
            for name in ("workspace_id", "scope"):
                holders = [c.run.workspace.id if name == "workspace_id" else c.run.scope for c in running if c.run.workspace]
                assert len(holders) == len(set(holders)), (name, holders)
        elif not held and not store.find([RunState.QUEUED], limit=1):
            break
        if held and (claim is None or len(held) > 3 or dice.random() < 0.5):
            done = held.pop(dice.randrange(len(held)))
            state = RunState.SUCCEEDED if done.attempt == 2 else RunState.QUEUED
            store.finish(done, Ending(outcome=Outcome(kind=OutcomeKind.SUCCEEDED), decision=Decision(state=state)))
    store.close()
    print("\n".join(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
