"""Runs periodic work in a background thread: once at the start, and again after each pause.
`OneOfHost` is a lock for work that only one process of a host may do at a time.

`perdure serve` and worker pools use this module for notices, reports to forges, plans, deliveries,
the live journal and housekeeping. An exception in a round is reported and does not end the thread.
Otherwise the periodic work would stop without anybody noticing.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path


class Rounds:
    """A background thread that calls `work` repeatedly, from `start` to `stop`.

    `work` returns the pause until the next call in seconds; None means `every_s`. If `work` raises
    an exception, `failed` gets it, and the next call follows after `every_s`. `last` is called in
    the thread after the last call of `work`.
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
        """End the current pause. If `work` is running, omit the pause after it. May be called from
        any thread."""
        self._woken.set()

    def stop(self) -> None:
        """End the thread. Returns after the current call of `work` and the call of `last`."""
        self._is_over = True
        self._woken.set()
        self._thread.join()

    def is_over(self) -> bool:
        """Return whether `stop` was called. A long round can check this and end early."""
        return self._is_over

    def _run(self) -> None:
        while not self._is_over:
            self._woken.wait(self._round())
            self._woken.clear()
        self._last()

    def _round(self) -> float:
        """Call `work` once. Return the pause until the next call, in seconds."""
        try:
            pause_s = self._work()
        except Exception as error:
            self._failed(error)
            return self._every_s
        if pause_s is None:
            return self._every_s
        return pause_s


class OneOfHost:
    """An advisory lock on a file. The process that holds it does the work that only one process of
    a host should do. When that process ends, another one takes over."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def is_mine(self) -> bool:
        """Take the lock if it is free. Return whether this process holds it now."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)
