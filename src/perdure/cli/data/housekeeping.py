"""Housekeeping for a pool, in a thread: the daily sweep, the ballast (a file that reserves disk
space), spare checkouts, and messages when the disk gets full or has space again."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.sweeper import due, rules_of, sweep
from perdure.errors import PerdureError
from perdure.host.rounds import Rounds

EVERY_S = 60.0
KNOWN_MS = 365 * 86_400_000
"""Time in milliseconds for which a delivery is stored, so that a repetition of it is recognized.
The body of the delivery may be deleted earlier."""


class Housekeeping:
    """A thread that runs for the duration of a `with` block. If a sweep is running at the end of
    the block, it is completed first.

    - `say`: called with each message for the user.
    - `every_s`: the time between two rounds, in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        say: Callable[[str], None],
        every_s: float = EVERY_S,
    ) -> None:
        self._engine, self._settings, self._say = engine, settings, say
        self._crowded = ""
        self._rounds = Rounds("housekeeping", self._round, every_s, self._failed)

    def __enter__(self) -> Housekeeping:
        self.look()
        self._rounds.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rounds.stop()

    def _round(self) -> None:
        """Check the free space, then sweep if a sweep is due. If the check fails, report that and
        still sweep. Then make spare checkouts if there is enough space."""
        try:
            self.look()
        except Exception as error:
            self._say(f"free space cannot be read: {error or type(error).__name__}")
        self._sweep()
        if not self._crowded:
            self._make_spares()

    def _make_spares(self) -> None:
        try:
            self._engine.workspaces.make_spares()
        except (PerdureError, OSError) as error:
            self._say(f"no spare checkout could be made: {error or type(error).__name__}")

    def _failed(self, error: Exception) -> None:
        self._say(f"the daily sweep failed: {error or type(error).__name__}")

    def look(self) -> None:
        """Report when the free space becomes too little for new work, and when it is enough again.
        Each change is reported once. Create the ballast if there is enough space."""
        crowded = self._engine.volumes.crowded()
        if crowded and not self._crowded:
            self._say(
                f"{crowded}; nothing new is started until there is space (perdure du, perdure gc)"
            )
        elif self._crowded and not crowded:
            self._say("there is enough free space again")
        self._crowded = crowded
        if not crowded and (ballast := self._engine.volumes.ballast) is not None:
            ballast.make(spare=self._settings.disk_refuse_bytes)

    def _sweep(self) -> None:
        if not due(self._engine.state):
            return
        now = self._engine.store.now()
        self._engine.store.thin_inbox(now - int(self._settings.gc_inbox * 1000), now - KNOWN_MS)
        swept = sweep(
            self._engine.store,
            self._engine.workspaces,
            self._engine.state,
            rules_of(self._settings),
        )
        if swept.taken or swept.for_a_person:
            if swept.for_a_person:
                look = "; look with: perdure gc --dry-run"
            else:
                look = ""
            self._say(f"swept: {len(swept.taken)} removed{look}")
