"""Caches slow measurements. They are made in a separate thread, and pages show them with their
age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from perdure.errors import PerdureError

FIRST_S = 1.5
"""Maximum time in seconds that a page waits for a measurement that was never made before."""


class Found(Struct, frozen=True):
    """A cached measurement: the time when it was made (milliseconds since 1970), how long it took
    in seconds, and the measured value. If it failed, `problem` has the reason."""

    at: int
    seconds: float
    value: Any = None
    problem: str = ""


class Measured(Struct):
    """A cache of measurements by name. Thread-safe."""

    _lock: threading.Condition = field(default_factory=threading.Condition)
    _found: dict[str, Found] = field(default_factory=dict)
    _under_way: set[str] = field(default_factory=set)

    def get(
        self, name: str, measure: Callable[[], Any], fresh_s: float, now_ms: int
    ) -> tuple[Found | None, bool]:
        """Return the cached measurement, and whether a new one is in progress. A new one is started
        if the cached one is older than `fresh_s` seconds. If nothing is cached, wait up to
        `FIRST_S` seconds for the first one; the result is None if it takes longer."""
        with self._lock:
            found = self._found.get(name)
            if name not in self._under_way and (
                found is None or now_ms - found.at > fresh_s * 1000
            ):
                self._under_way.add(name)
                threading.Thread(
                    target=self._measure,
                    args=(name, measure),
                    name=f"measuring {name}",
                    daemon=True,
                ).start()
            if found is None:
                self._lock.wait_for(lambda: name in self._found, FIRST_S)
            return self._found.get(name), name in self._under_way

    def now(self, name: str, measure: Callable[[], Any], fresh_s: float, now_ms: int) -> Any:
        """Return the cached value. If there is none, or if it is older than `fresh_s` seconds,
        measure in this thread and return the new value. Raises the errors of `measure`."""
        with self._lock:
            found = self._found.get(name)
        if found is None or now_ms - found.at > fresh_s * 1000:
            began = time.monotonic()
            value = measure()
            found = Found(now_ms, time.monotonic() - began, value)
            with self._lock:
                self._found[name] = found
        return found.value

    def forget(self, name: str) -> None:
        """Discard a measurement, so that the next `get` starts a new one."""
        with self._lock:
            self._found.pop(name, None)

    def _measure(self, name: str, measure: Callable[[], Any]) -> None:
        began = time.monotonic()
        value, problem = None, "It could not be measured; see the log of perdure serve."
        try:
            value, problem = measure(), ""
        except (PerdureError, OSError) as error:
            problem = str(error)
        finally:
            with self._lock:
                self._found[name] = Found(
                    time.time_ns() // 1_000_000, time.monotonic() - began, value, problem
                )
                self._under_way.discard(name)
                self._lock.notify_all()
