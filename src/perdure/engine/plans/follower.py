"""Follows a task's run to its end, whoever works on it: this process, a pool that was quicker, or
nobody any more."""

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
    """Return the run at its end, or as it is when perdure was asked to stop; a pool performs it."""
    ring(engine.state)
    while True:
        run = engine.store.get(run_id)
        if run.state in FINAL or engine.stopping():
            return run
        time.sleep(NAP_S)


def follow_run(engine: Engine, run_id: str) -> TaskRun:
    """The run at its end, or as it is when perdure was asked to stop. Raises Conflict while another
    run is in its workdir."""
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
            # A pool was quicker: it is as good as this process, and may have ended by now.
            if now.state is RunState.QUEUED and now.attempt == run.attempt:
                raise
