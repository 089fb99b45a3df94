"""Slow measurements, made once in a separate thread and shown with their age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from perdure.errors import PerdureError

FIRST_S = 1.5
"""Maximum time that a page waits for a first measurement, in seconds."""


class Found(Struct, frozen=True):
    """A measurement: its time (ms since 1970), its duration (s), and its value, or the reason why
    there is none."""

    at: int
    seconds: float
    value: Any = None
    problem: str = ""


class Measured(Struct):
    """Measurements by name. Thread-safe."""

    _lock: threading.Condition = field(default_factory=threading.Condition)
    _found: dict[str, Found] = field(default_factory=dict)
    _under_way: set[str] = field(default_factory=set)

    def get(
        self, name: str, measure: Callable[[], Any], fresh_s: float, now_ms: int
    ) -> tuple[Found | None, bool]:
        """Return the known measurement, and whether a new one is in progress. Starts a new one if
        the known one is older than `fresh_s`. If there is none yet, waits briefly for the first."""
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
        """Return the value, measuring first if the known one is older than `fresh_s`. Raises the
        errors of the measurement."""
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
