"""The heartbeat of an attempt: who is silent for the length of a lease has lost it.

Where several hosts share a database, it beats from the claim to the end, also while a repository is
fetched or a check runs, and each beat lets the shim keep the agent for a while longer
(`process.hold`). A host that is cut off or stopped cannot renew: its shim ends the agent after two
thirds of a lease, kills it after five sixths, and another host takes the attempt over at five
quarters. What the late host still wants to write is refused by the fence (LostLease).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from perdure.engine.attempt.engine import Engine
from perdure.errors import LostLease, PerdureError
from perdure.host import process
from perdure.model import Claim, Exit, RunState, TaskRun

BEATS = 4
"""In each lease."""
TICK_S = 0.05
UNTIL, END_BY = 2 / 3, 5 / 6
"""Parts of a lease after which an agent is asked to end, and made to."""


def beat(engine: Engine, claim: Claim) -> TaskRun:
    """Renews the lease, for the agent as well. Raises LostLease, StoreError."""
    asked = process.boottime()
    run = engine.store.renew(claim, engine.lease_s)
    if engine.host.id:
        directory = engine.attempt_directory(claim)
        for at_work in (directory, *directory.glob("summary"), *directory.glob("verify-*")):
            process.hold(at_work, asked + engine.lease_s * UNTIL, asked + engine.lease_s * END_BY)
    return run


def followed(engine: Engine, claim: Claim, running: process.Process) -> tuple[Exit, bool]:
    """Waits for the end of a program of the attempt's that is not its agent's turn, keeps the lease
    meanwhile, and hears a stop. Returns how it ended, and whether it was asked to. Whatever is
    raised here (LostLease, StoreError), the program has ended then."""
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
    """Keeps the lease while the block runs, in a thread of its own. Where it is lost, nothing of
    the attempt lives on here."""
    if not engine.host.id:
        yield
        return
    over = threading.Event()
    heart = threading.Thread(
        target=_beat_on, args=(engine, claim, over), name=f"heart-{claim.run.name}", daemon=True
    )
    heart.start()
    try:
        yield
    except LostLease:
        end_here(engine, claim)
        raise
    finally:
        over.set()
        heart.join()


def end_here(engine: Engine, claim: Claim) -> None:
    """Ends what lives of a lost attempt, unless another supervisor of this host has it now."""
    try:
        run = engine.store.get(claim.run.id)
        if (
            run.state is RunState.RUNNING
            and run.attempt == claim.attempt
            and process.worker_alive(run.worker, engine.host) is not None
        ):
            return
    except PerdureError:
        pass
    directory = engine.attempt_directory(claim)
    for at_work in (directory, *directory.glob("summary"), *directory.glob("verify-*")):
        agent = process.find(at_work)
        if agent is not None and agent.alive():
            agent.kill("lapsed")


def _beat_on(engine: Engine, claim: Claim, over: threading.Event) -> None:
    while not over.wait(engine.lease_s / BEATS):
        try:
            beat(engine, claim)
        except LostLease:
            if not over.is_set():
                end_here(engine, claim)
            return
        except (PerdureError, OSError):
            # The database is away: the next beat may find it, and without one the shim knows what
            # to do.
            continue
