"""What the pages work with. A page reads through a connection of its own, so that no reader holds
up the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from anyio import CapacityLimiter

from perdure.agents import registry
from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.engine.conversations import ConversationShelf
from perdure.errors import PerdureError
from perdure.host.wakeup import ring
from perdure.lateclass import dataclass
from perdure.model import TaskSpec
from perdure.protocols import AgentDriver
from perdure.server.context import ServiceCheck
from perdure.server.dashboard.measurements import Measured

AT_ONCE = 12


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """`look` is only looked into; `seed` has what a new task is not asked for; `checks` looks at
    this machine, and takes a while; `dispatch` tells who gives deliveries to agents that there may
    be one."""

    engine: Engine
    look: EngineStore
    settings: Settings
    seed: TaskSpec
    checks: Callable[[], Sequence[ServiceCheck]]
    dispatch: Callable[[], None]
    measured: Measured

    @cached_property
    def limiter(self) -> CapacityLimiter:
        """So many pages are made at once: what takes long here leaves the threads of webhooks and
        health alone."""
        return CapacityLimiter(AT_ONCE)

    def ring(self) -> None:
        """Tells the pools that there is work."""
        ring(self.engine.state)

    def shelf(self) -> ConversationShelf:
        """All conversations of this machine."""
        return ConversationShelf(self.look, _loaded(), self.engine.environ)

    @property
    def agents(self) -> list[str]:
        return list(registry.names())


def _loaded() -> dict[str, AgentDriver]:
    """A driver that cannot be loaded hides no other."""
    found = {}
    for name in registry.names():
        try:
            found[name] = registry.load(name)
        except PerdureError:
            continue
    return found
