"""Finds out which processes of a running attempt are alive, for `perdure.rules.liveness`. It only
reads, does not wait, and takes over no attempt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from perdure.host.process.identity import boot_id, worker_alive
from perdure.host.process.launch import running
from perdure.host.system import namespace
from perdure.model import UNSHARED_HOST, Host, Liveness, RunState
from perdure.rules.liveness import Signs, liveness

if TYPE_CHECKING:
    from collections.abc import Callable


class Running(Protocol):
    """The fields of a run that `Probe` needs. A row of the store's list of runs has these fields
    too."""

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
    """Finds signs of life of attempts, as seen from one host. `state` is the state directory of
    this host, which contains the directories of its attempts."""

    state: Path
    host: Host = UNSHARED_HOST

    def signs(self, run: Running, now: int) -> Signs:
        """Return what is known of the supervisor, the agent and the lease of a running attempt.
        `now`: time of the store's clock, in ms."""
        here = not self.host.id or run.host in ("", self.host.id)
        directory = self.state / "runs" / run.id / str(run.attempt)
        return Signs(
            supervisor=self._supervisor(run.worker),
            agent=_lives(directory) if here else None,
            lease_over=run.lease_until < now,
        )

    def liveness(self, run: Running, now: int, again: Callable[[], Running]) -> Liveness | None:
        """Return which processes of a run are alive; None if the run is not running. `again` reads
        the run once more. This is necessary because a supervisor exits when its run ends. So if the
        supervisor is dead, the run may just have ended."""
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
        """Return whether the supervisor lives. Return None if it runs in another container on this
        machine, whose processes are invisible from here."""
        if worker.count(":") >= 3:
            boot, _, own = worker.rsplit(":", 3)[1].partition(".")
        else:
            boot, _, own = ("", "", "")
        if own and own != namespace() and boot == boot_id()[:8]:
            return None
        return worker_alive(worker, self.host)


def _lives(directory: Path) -> bool:
    """Return whether a process of an attempt is alive: its agent, its summary turn, or one of its
    checks."""
    return any(map(running, (directory, *directory.glob("summary"), *directory.glob("verify-*"))))
