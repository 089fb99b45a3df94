"""Follows a task's run to its end. The run may be performed by this process or by a pool that
claimed it first, or its supervisor may have died."""

from __future__ import annotations

import time

from perdure.engine.attempt import Engine
from perdure.engine.worker import drive, follow
from perdure.errors import Conflict
from perdure.host.wakeup import ring
from perdure.model import RunState, TaskRun
from perdure.rules.lifecycle import FINAL

NAP_S = 0.3


def await_run(engine: Engine, run_id: str) -> TaskRun:
    """Wait for a run that a pool performs, and return it when it has ended. If perdure is asked to
    stop, return it earlier, in its present state."""
    ring(engine.state)
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping():
            return run
        time.sleep(NAP_S)


def follow_run(engine: Engine, run_id: str) -> TaskRun:
    """Perform the run, or follow it if another process performs it. Return the run when it has
    ended. If perdure is asked to stop, return it earlier, in its present state. Raises Conflict
    while another run uses its workdir."""
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping():
            return run
        if run.state is RunState.RUNNING:
            follow(engine, run_id, lambda record: None)
            continue
        try:
            drive(engine, run_id)
        except Conflict:
            now = engine.store.get(run_id)
            # A pool may have claimed the run before this process could. The pool does the same
            # work, and may already have finished, so this conflict is ignored.
            if now.state is RunState.QUEUED and now.attempt == run.attempt:
                raise
        if engine.store.get(run_id).state is RunState.QUEUED:
            # The run waits for a person, or another process has claimed and returned it.
            time.sleep(NAP_S)
