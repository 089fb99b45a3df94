"""Renews the lease of an attempt. A supervisor that does not renew it in time loses the attempt.

If several hosts share a database, the supervisor renews the lease from the claim to the end, even
while a repository is fetched or a check runs. Each renewal also lets the shim keep the agent
running for another period (`process.hold`).

A host that is disconnected or stopped cannot renew the lease. After two thirds of the lease's
duration the shim asks the agent to end, and after five sixths it kills the agent. After five
quarters another host takes the attempt over. Later writes of the first host fail with LostLease,
because its fencing token is no longer valid.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.engine.attempt.engine import Engine
from perdure.errors import LostLease, PerdureError
from perdure.host import process
from perdure.model import Claim, Exit, Host, RunState, TaskRun
from perdure.protocols import RunStore

BEATS = 4
"""Number of heartbeats during one lease."""
TICK_S = 0.05
UNTIL, END_BY = 2 / 3, 5 / 6
"""Two points in time, as fractions of a lease. Without a heartbeat, the agent is asked to end at
the first and is killed at the second."""


def beat(engine: Engine, claim: Claim) -> TaskRun:
    """Renew the lease, let the attempt's programs run for another period, and return the run.
    Raises LostLease and StoreError."""
    asked = process.boottime()
    run = engine.store.renew(claim, engine.lease_s)
    if engine.host.id:
        directory = engine.attempt_directory(claim)
        for at_work in (directory, *directory.glob("summary"), *directory.glob("verify-*")):
            process.hold(at_work, asked + engine.lease_s * UNTIL, asked + engine.lease_s * END_BY)
    return run


def wait_with_heartbeat(
    engine: Engine, claim: Claim, running: process.Process
) -> tuple[Exit, bool]:
    """Wait for a program of the attempt, such as a check. Meanwhile, renew the lease, and stop the
    program if a stop is requested. Return how the program ended, and whether it was asked to stop.

    Raises LostLease and StoreError, after killing the program.
    """
    last, stopped = process.boottime(), False
    try:
        while (end := running.wait(TICK_S)) is None:
            now = process.boottime()
            wanted = engine.stopping()
            if now - last >= engine.lease_s / BEATS:
                last = now
                wanted = beat(engine, claim).cancel_requested or wanted
            if wanted and not stopped:
                stopped = True
                running.stop("stopped")
    except BaseException:
        running.kill()
        raise
    return end, stopped


@contextmanager
def beating(engine: Engine, claim: Claim) -> Iterator[None]:
    """Renew the lease in a separate thread while the block runs. If the lease is lost, end the
    attempt's processes on this host. Do nothing if the database is not shared."""
    if not engine.host.id:
        yield
        return
    over = threading.Event()

    def beat_on() -> None:
        while not over.wait(engine.lease_s / BEATS):
            try:
                beat(engine, claim)
            except LostLease:
                if not over.is_set():
                    end_here(engine.store, engine.host, engine.attempt_directory(claim), claim)
                return
            except (PerdureError, OSError):
                # The database is unreachable. The next heartbeat may succeed; if none does, the
                # shim ends the agent.
                continue

    heart = threading.Thread(target=beat_on, name=f"heart-{claim.run.name}", daemon=True)
    heart.start()
    try:
        yield
    except LostLease:
        end_here(engine.store, engine.host, engine.attempt_directory(claim), claim)
        raise
    finally:
        over.set()
        heart.join()


def end_here(store: RunStore, host: Host, directory: Path, claim: Claim) -> None:
    """Kill the processes of an attempt whose lease was lost, unless another supervisor on this host
    has taken it over."""
    try:
        run = store.get(claim.run.id)
        if (
            run.state is RunState.RUNNING
            and run.attempt == claim.attempt
            and process.worker_alive(run.worker, host) is not None
        ):
            return
    except PerdureError:
        pass
    for at_work in (directory, *directory.glob("summary"), *directory.glob("verify-*")):
        agent = process.find(at_work)
        if agent is not None and agent.alive():
            agent.kill("lapsed")
