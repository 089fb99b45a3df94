"""Collects the signs of life of a running attempt, for `perdure.rules.liveness`. Read-only: it
neither waits nor takes anything over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from perdure.host.process.identity import boot_id, worker_alive
from perdure.host.process.launch import running
from perdure.host.system import namespace
from perdure.model import NOWHERE, Host, Liveness, RunState
from perdure.rules.liveness import Signs, liveness

if TYPE_CHECKING:
    from collections.abc import Callable


class Running(Protocol):
    """A run, or a row of a list."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> RunState: ...
    @property
    def attempt(self) -> int: ...
    @property
    def worker(self) -> str: ...
    @property
    def lease_until(self) -> int: ...
    @property
    def host(self) -> str: ...


class Probe(Struct, frozen=True):
    """The point of view: a host, and the state directory with the attempts of its runs."""

    state: Path
    host: Host = NOWHERE

    def signs(self, run: Running, now: int) -> Signs:
        """Return the visible signs of life of a running attempt. `now`: the store's clock, in
        ms."""
        here = not self.host.id or run.host in ("", self.host.id)
        directory = self.state / "runs" / run.id / str(run.attempt)
        return Signs(
            supervisor=self._supervisor(run.worker),
            agent=_lives(directory) if here else None,
            lease_over=run.lease_until < now,
        )

    def liveness(self, run: Running, now: int, again: Callable[[], Running]) -> Liveness | None:
        """Return which processes of a run are alive; None if the run is not running. A supervisor
        exits when its run ends, so a dead one proves nothing by itself. `again` reads the run once
        more, to see whether it has just ended."""
        if run.state is not RunState.RUNNING:
            return None
        found = liveness(self.signs(run, now))
        if found is Liveness.ATTENDED:
            return found
        newer = again()
        if newer.state is not RunState.RUNNING:
            return None
        same = (newer.attempt, newer.worker) == (run.attempt, run.worker)
        if same:
            return found
        return liveness(self.signs(newer, now))

    def _supervisor(self, worker: str) -> bool | None:
        """Return whether the supervisor lives. None if it runs in another container with this
        host's name, whose processes are invisible here."""
        if worker.count(":") >= 3:
            boot, _, own = worker.rsplit(":", 3)[1].partition(".")
        else:
            boot, _, own = ("", "", "")
        if own and own != namespace() and boot == boot_id()[:8]:
            return None
        return worker_alive(worker, self.host)


def _lives(directory: Path) -> bool:
    """Return whether the agent of an attempt is alive, or its last turn, or a check of the
    attempt."""
    return any(
        running(place)
        for place in (directory, *directory.glob("summary"), *directory.glob("verify-*"))
    )
