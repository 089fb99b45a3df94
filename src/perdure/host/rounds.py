"""A background thread that works in rounds: one at its start, then one after each pause.
`OneOfHost` is the lock for work that only one process of a host may do at a time.

`perdure serve` and worker pools use it for periodic work: notices, reports to forges, plans,
deliveries, the live journal, housekeeping. A round that raises is reported and never ends the
thread, because nobody would notice its end.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path


class Rounds:
    """Calls `work` in a thread, from `start` to `stop`.

    `work` returns the pause until the next round in seconds; None means `every_s`. `failed` gets
    the error of a round that raised; the next one follows after `every_s`. `last` is called in
    the thread after the last round.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        every_s: float,
        failed: Callable[[Exception], None],
        last: Callable[[], None] = lambda: None,
    ) -> None:
        self._work, self._every_s, self._failed, self._last = work, every_s, failed, last
        self._woken = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """End the current pause, or omit the next one. May be called from any thread."""
        self._woken.set()

    def stop(self) -> None:
        """Wait for the current round and for `last`. No round begins after this call."""
        self._is_over = True
        self._woken.set()
        self._thread.join()

    def is_over(self) -> bool:
        """Return whether `stop` was called, so that a long round can end early."""
        return self._is_over

    def _run(self) -> None:
        while not self._is_over:
            self._woken.wait(self._round())
            self._woken.clear()
        self._last()

    def _round(self) -> float:
        """Work once. Return the pause until the next round, in seconds."""
        try:
            pause_s = self._work()
        except Exception as error:
            self._failed(error)
            return self._every_s
        if pause_s is None:
            return self._every_s
        return pause_s


class OneOfHost:
    """An advisory lock on a file: of the processes of a host, one does the work. The others take
    over when it has ended."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def is_mine(self) -> bool:
        """Take the lock if it is free. Return whether this process holds it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)
