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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

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


class Heartbeat(Struct, frozen=True):
    """Renews the lease of one attempt. `directory`: the attempt's directory. The lease lasts
    `lease_s` seconds."""

    store: RunStore
    host: Host
    lease_s: float
    claim: Claim
    directory: Path

    def beat(self) -> TaskRun:
        """Renew the lease, let the attempt's programs run for another period, and return the run.
        Raises LostLease and StoreError."""
        asked = process.boottime()
        run = self.store.renew(self.claim, self.lease_s)
        if self.host.id:
            until, end_by = asked + self.lease_s * UNTIL, asked + self.lease_s * END_BY
            for at_work in _at_work(self.directory):
                process.hold(at_work, until, end_by)
        return run

    def wait(self, running: process.Process, stopping: Callable[[], bool]) -> tuple[Exit, bool]:
        """Wait for a program of the attempt, such as a check. Meanwhile, renew the lease, and stop
        the program if a stop is requested, or if `stopping` returns True. Return how the program
        ended, and whether it was asked to stop.

        Raises LostLease and StoreError, after killing the program.
        """
        last, stopped = process.boottime(), False
        try:
            while (end := running.wait(TICK_S)) is None:
                now = process.boottime()
                wanted = stopping()
                if now - last >= self.lease_s / BEATS:
                    last = now
                    wanted = self.beat().cancel_requested or wanted
                if wanted and not stopped:
                    stopped = True
                    running.stop("stopped")
        except BaseException:
            running.kill()
            raise
        return end, stopped

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Renew the lease in a separate thread while the block runs. If the lease is lost, end the
        attempt's processes on this host. Do nothing if the database is not shared."""
        if not self.host.id:
            yield
            return
        over = threading.Event()

        def beat_on() -> None:
            while not over.wait(self.lease_s / BEATS):
                try:
                    self.beat()
                except LostLease:
                    if not over.is_set():
                        self.end_here()
                    return
                except (PerdureError, OSError):
                    # The database is unreachable. The next heartbeat may succeed; if none does, the
                    # shim ends the agent.
                    continue

        name = f"heart-{self.claim.run.name}"
        heart = threading.Thread(target=beat_on, name=name, daemon=True)
        heart.start()
        try:
            yield
        except LostLease:
            self.end_here()
            raise
        finally:
            over.set()
            heart.join()

    def end_here(self) -> None:
        """Kill the processes of the attempt, whose lease was lost, unless another supervisor on
        this host has taken it over."""
        try:
            run = self.store.get(self.claim.run.id)
            if (
                run.state is RunState.RUNNING
                and run.attempt == self.claim.attempt
                and process.worker_alive(run.worker, self.host) is not None
            ):
                return
        except PerdureError:
            pass
        for at_work in _at_work(self.directory):
            agent = process.find(at_work)
            if agent is not None and agent.alive():
                agent.kill("lapsed")


def _at_work(directory: Path) -> Iterator[Path]:
    """Yield the directories in which programs of an attempt may run: that of the agent, of the turn
    for a summary, and of each check."""
    yield directory
    yield from directory.glob("summary")
    yield from directory.glob("verify-*")
