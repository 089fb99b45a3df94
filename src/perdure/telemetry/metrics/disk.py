"""Measures disk usage by walking over all files. A walk may take long, so it runs in a thread, at
intervals. Used by `exposition`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct

from perdure.engine.sweeper.usage import DiskUsage
from perdure.errors import PerdureError

EVERY_S = 600.0
REST = 50
"""Minimum pause after a walk over all files, as a multiple of the walk's duration."""


class DiskMeasure(Struct, frozen=True):
    """The result of the latest walk: its end (seconds since 1970), its duration in seconds, and the
    bytes and number of files by class of data."""

    at: float
    took_s: float
    bytes: Counter[str]
    files: Counter[str]


class DiskGauges:
    """Provides the result of the latest walk to each scrape, without waiting for a new walk.
    Thread-safe."""

    def __init__(self, walk: Callable[[], DiskUsage], every_s: float = EVERY_S) -> None:
        self._walk = walk
        self._every_s = every_s
        self._walking = threading.Lock()
        self._due = 0.0
        self._found: DiskMeasure | None = None

    def look(self) -> DiskMeasure | None:
        """Return the result of the latest walk; None if no walk has ended yet. If a new walk is
        due, start it in a thread."""
        if time.monotonic() >= self._due and self._walking.acquire(blocking=False):
            threading.Thread(target=self._go, name="disk", daemon=True).start()
        return self._found

    def _go(self) -> None:
        began = time.monotonic()
        try:
            with suppress(PerdureError, OSError):
                self._found = _measured(self._walk(), began)
        finally:
            ended = time.monotonic()
            self._due = ended + max(self._every_s, REST * (ended - began))
            self._walking.release()


def _measured(usage: DiskUsage, began: float) -> DiskMeasure:
    size, files = Counter[str](), Counter[str]()
    for (cls, *_), number in usage.bytes.items():
        size[cls] += number
    for (cls, *_), number in usage.files.items():
        files[cls] += number
    return DiskMeasure(time.time(), time.monotonic() - began, size, files)
