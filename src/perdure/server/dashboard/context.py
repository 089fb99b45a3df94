"""Services that all pages share, and a cache of slow measurements. A page reads through a separate
database connection, so that it does not block the worker pool. Measurements are made in a thread of
their own, and pages show them with their age.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from anyio import CapacityLimiter
from msgspec import Struct, field

from perdure.agents import registry
from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.conversations import ConversationIndex
from perdure.errors import PerdureError
from perdure.host.wakeup import ring
from perdure.model import TaskSpec
from perdure.protocols import AgentDriver
from perdure.server.context import ServiceCheck

FIRST_S = 1.5
"""Maximum time in seconds that a page waits for a measurement that was never made before."""


class Found(Struct, frozen=True):
    """A cached measurement: the time when it was made (milliseconds since 1970), how long it took
    in seconds, and the measured value. If the measurement failed, `problem` has the reason."""

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
        """Return a pair: the cached measurement, and whether a new one is in progress. A new one is
        started if the cached one is missing or older than `fresh_s` seconds. If nothing is cached,
        wait for the new one, but at most `FIRST_S` seconds. If it takes longer, the first value of
        the pair is None."""
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


AT_ONCE = 12


class PageContext(Struct, frozen=True, kw_only=True, dict=True):
    """The shared services. `look` is a store that can only read. `seed` has the default values of a
    new task's fields. `checks` runs the checks of `perdure doctor`, which takes a while. `dispatch`
    wakes the dispatcher; it is called when there may be a new delivery."""

    engine: Engine
    look: EngineStore
    settings: Settings
    seed: TaskSpec
    checks: Callable[[], Sequence[ServiceCheck]]
    dispatch: Callable[[], None]
    measured: Measured

    @cached_property
    def limiter(self) -> CapacityLimiter:
        """Return the limiter for pages: at most `AT_ONCE` pages are rendered at the same time.
        Without this limit, slow pages could use all threads, which webhooks and health checks need
        too."""
        return CapacityLimiter(AT_ONCE)

    def ring(self) -> None:
        """Wake the pools, because a run may be due."""
        ring(self.engine.state)

    def conversations(self) -> ConversationIndex:
        """Return an index of all conversations on this machine."""
        return ConversationIndex(self.look, _loaded(), self.engine.environ)

    @property
    def agents(self) -> list[str]:
        return list(registry.names())


def _loaded() -> dict[str, AgentDriver]:
    """Return all drivers that can be loaded. A driver that fails to load is left out."""
    found = {}
    for name in registry.names():
        try:
            found[name] = registry.load(name)
        except PerdureError:
            continue
    return found
