"""Works on one run until it is final or its next try lies in the future: claim, perform, wait, again.

Called by the verbs that follow a run (`run`, `retry`, `update`) and by the detached supervisor. The store's claim decides who
works; a second perdure on the same task is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure import process
from perdure.attempt import Engine, perform, take_over
from perdure.errors import Conflict
from perdure.lifecycle import FINAL
from perdure.model import Claim, RunState, TaskRun

if TYPE_CHECKING:
    from perdure.events import Record

NAP_S = 0.2
LEFT_ALONE_MS = 5_000
"""A run that was due so long ago has no supervisor that would take it."""


def drive(engine: Engine, run_id: str) -> TaskRun:
    """Performs attempts until the run is final, or until perdure is asked to stop: then a waiting run stays queued.

    Raises Conflict if another supervisor, or another run on the same workdir or conversation, is at work.
    """
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping():
            return run
        if run.state is RunState.QUEUED and run.run_after > engine.store.now():
            time.sleep(min(NAP_S, (run.run_after - engine.store.now()) / 1000 + 0.001))
            continue
        claim = engine.store.claim(engine.worker, engine.lease_s, ref=run.id)
        if claim is None:
            raise _in_use(engine, run_id)
        perform(engine, claim)


def rescue(engine: Engine, run: TaskRun) -> TaskRun | None:
    """Takes over the running attempt of a run whose supervisor is gone. None if that supervisor is alive and well."""
    claim = next((claim for claim in engine.store.claims() if claim.run.id == run.id), None)
    if claim is None:
        return engine.store.get(run.id)
    if not is_orphaned(engine, claim):
        return None
    return take_over(engine, claim)


def follow(engine: Engine, run_id: str, show: Callable[[Record], None]) -> TaskRun:
    """Follows a run that another supervisor works on, to its end; `show` gets each new record. Takes over if that one dies."""
    seen = engine.store.history(run_id, limit=1_000_000)[-1].seq
    while True:
        run = engine.store.get(run_id)
        for record in engine.store.history(run_id, after=seen):
            seen = record.seq
            show(record)
        if run.state in FINAL or engine.stopping():
            return run
        left_alone = run.state is RunState.QUEUED and engine.store.now() - run.run_after > LEFT_ALONE_MS
        if left_alone or (run.state is RunState.RUNNING and rescue(engine, run) is not None):
            return drive(engine, run_id)
        time.sleep(NAP_S)


def is_orphaned(engine: Engine, claim: Claim) -> bool:
    """Whether the supervisor of a running attempt is dead: seen to be so on this host, by its lease on another."""
    alive = process.worker_alive(claim.worker)
    if alive is None:
        return claim.run.lease_until < engine.store.now()
    return not alive


def _in_use(engine: Engine, run_id: str) -> Conflict:
    run = engine.store.get(run_id)
    if run.state is RunState.RUNNING:
        return Conflict(f"{run.name} is already running (attempt {run.attempt})", f"perdure logs -f {run.name}")
    return Conflict(
        f"{run.name} cannot start: another run is at work in the same workdir or conversation",
        f"perdure ls --state running, then perdure retry {run.name}",
    )
