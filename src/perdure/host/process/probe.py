"""Reads the facts of a running attempt's life, for `perdure.rules.liveness`. Looks only: it waits
for nothing and takes nothing over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from perdure.host.process.identity import boot_id, namespace, worker_alive
from perdure.host.process.launch import running
from perdure.lateclass import dataclass
from perdure.model import NOWHERE, Host, RunState
from perdure.rules.liveness import Liveness, Signs, liveness

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


@dataclass(frozen=True, slots=True)
class Probe:
    """Looks from one place: a host, with the state directory in which the attempts of its runs
    lie."""

    state: Path
    host: Host = NOWHERE

    def signs(self, run: Running, now: int) -> Signs:
        """Return what can be seen of a running attempt. `now`: by the store's clock, in ms."""
        here = not self.host.id or run.host in ("", self.host.id)
        directory = self.state / "runs" / run.id / str(run.attempt)
        return Signs(
            supervisor=self._supervisor(run.worker),
            agent=_lives(directory) if here else None,
            lease_over=run.lease_until < now,
        )

    def liveness(self, run: Running, now: int, again: Callable[[], Running]) -> Liveness | None:
        """Return what lives of a run; None for one that is not running.

        A supervisor ends when its run does, so one that is found dead is asked for twice: `again`
        reads the run once more.
        """
        if run.state is not RunState.RUNNING:
            return None
        found = liveness(self.signs(run, now))
        if found is Liveness.ATTENDED:
            return found
        newer = again()
        if newer.state is not RunState.RUNNING:
            return None
        same = (newer.attempt, newer.worker) == (run.attempt, run.worker)
        return found if same else liveness(self.signs(newer, now))

    def _supervisor(self, worker: str) -> bool | None:
        """Whether the supervisor lives. A container that has this host's name has processes that
        cannot be seen from here."""
        boot, _, own = (
            worker.rsplit(":", 3)[1].partition(".") if worker.count(":") >= 3 else ("", "", "")
        )
        if own and own != namespace() and boot == boot_id()[:8]:
            return None
        return worker_alive(worker, self.host)


def _lives(directory: Path) -> bool:
    """Whether the agent of an attempt lives, or the last turn or a check that belongs to it."""
    return any(
        running(place)
        for place in (directory, *directory.glob("summary"), *directory.glob("verify-*"))
    )
