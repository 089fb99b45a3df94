"""Services that all pages share. A page reads through a separate database connection, so that it
does not block the pool."""

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
        """Return the limiter of how many pages are rendered at the same time. It keeps slow pages
        from using all threads, which webhooks and health checks need too."""
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
