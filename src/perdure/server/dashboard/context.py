"""Shared services of the pages. A page reads through a separate connection, so that a reader does
not block the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from anyio import CapacityLimiter
from msgspec import Struct

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
from perdure.server.dashboard.measurements import Measured

AT_ONCE = 12


class PageContext(Struct, frozen=True, kw_only=True, dict=True):
    """Shared services. `look` is only for reading. `seed` has the default fields of a new task.
    `checks` checks this machine, which takes a while. `dispatch` wakes the dispatcher, because
    there may be a new delivery."""

    engine: Engine
    look: EngineStore
    settings: Settings
    seed: TaskSpec
    checks: Callable[[], Sequence[ServiceCheck]]
    dispatch: Callable[[], None]
    measured: Measured

    @cached_property
    def limiter(self) -> CapacityLimiter:
        """Return the limit on the number of pages made in parallel. It keeps slow pages from using
        the threads of webhooks and health checks."""
        return CapacityLimiter(AT_ONCE)

    def ring(self) -> None:
        """Tell the pools that there is work."""
        ring(self.engine.state)

    def shelf(self) -> ConversationIndex:
        """Return all conversations of this machine."""
        return ConversationIndex(self.look, _loaded(), self.engine.environ)

    @property
    def agents(self) -> list[str]:
        return list(registry.names())


def _loaded() -> dict[str, AgentDriver]:
    """Return the drivers that can be loaded. One that fails does not hide the others."""
    found = {}
    for name in registry.names():
        try:
            found[name] = registry.load(name)
        except PerdureError:
            continue
    return found
