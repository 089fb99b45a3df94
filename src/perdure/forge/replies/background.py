"""The thread that reports runs to forges. It finds the runs whose report is due, and reports a few
of them in parallel."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from perdure.errors import LostLease, NotFound, PerdureError, StoreError
from perdure.forge.replies.comments import PostingUpdater
from perdure.host.rounds import OneOfHost, Rounds

LOOK_S = 1.0
AT_ONCE = 4
MANY = 100
TROUBLED_S = 60.0
"""Pause before a run is reported again after an unexpected error, in seconds."""


class Poster:
    """Posts to the forges, as a context manager. At its end it waits for the reports in progress,
    then makes those that are still due. `say` is called with a line for each error.

    Only one poster is active in a state directory at a time. A second `perdure serve` takes over
    when the first one ends.
    """

    def __init__(self, answering: PostingUpdater, say: Callable[[str], None]) -> None:
        self._answering, self._say = answering, say
        self._store = answering.engine.store
        self._lock = OneOfHost(answering.engine.state / "posting.lock")
        self._flying: dict[str, Future[None]] = {}
        self._later: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="posting")
        self._rounds = Rounds("posting", self._try, LOOK_S, self._failed, last=self._last)
        self._said = ""

    def __enter__(self) -> Poster:
        self._rounds.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rounds.stop()
        self._pool.shutdown()
        self._lock.close()

    def _try(self) -> None:
        if self._lock.is_mine():
            self._round()

    def _failed(self, error: Exception) -> None:
        self._tell(f"reports to forges failed: {error or type(error).__name__}")

    def _last(self) -> None:
        """Wait for the reports in progress, then make those that are still due, and wait again."""
        if self._lock.is_mine():
            wait(self._flying.values())
            self._round()
            wait(self._flying.values())

    def _round(self) -> None:
        self._flying = {run: future for run, future in self._flying.items() if not future.done()}
        now = time.monotonic()
        for run in [run for run, until in list(self._later.items()) if until < now]:
            del self._later[run]
        try:
            due = self._store.postings_due(MANY)
        except PerdureError as error:
            self._tell(f"reports to forges failed: {error}")
            return
        for posting in due:
            if posting.run not in self._flying and posting.run not in self._later:
                self._flying[posting.run] = self._pool.submit(self._one, posting.run)

    def _one(self, run_id: str) -> None:
        try:
            self._answering.answer(run_id)
            posting = self._store.posting(run_id)
            if posting is not None and posting.tries:
                self._tell(
                    f"the report of {self._store.get(run_id).name} is incomplete: {posting.reason}"
                )
        except (LostLease, NotFound):
            return  # Another host reports the run, or the run was removed.
        except StoreError as error:
            self._tell(f"a report to a forge failed: {error}")
        except Exception as error:
            # The error concerns one run. The other runs are still reported, and this one is tried
            # again later.
            self._later[run_id] = time.monotonic() + TROUBLED_S
            self._tell(f"a report to a forge failed: {error or type(error).__name__}")

    def _tell(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._say(line)
