"""What every part of the service works with: made by `perdure serve`, handed to the API, the
dashboard and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.lateclass import dataclass
from perdure.model import TaskSpec
from perdure.server.journal import Journal
from perdure.server.principal import Principals


@dataclass(frozen=True, slots=True)
class ServiceCheck:
    """One thing that was looked at. `state`: `ok`, `warn` (works, but) or `bad` (a run would
    fail)."""

    topic: str
    state: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """`engine` is for the verbs that act, `store` is for looking: a connection of its own, which
    holds up no writer."""

    engine: Engine
    store: EngineStore
    settings: Settings
    principals: Principals
    journal: Journal
    seed: TaskSpec
    """What a new task is not asked for: the settings of this machine."""
    checks: Callable[[], Sequence[ServiceCheck]]
    """Looks at everything that a run relies on; takes a while."""
    dispatch: Callable[[], None] = lambda: None
    """Tells who gives deliveries to agents that there may be one."""
    drive_plans: Callable[[], None] = lambda: None
    """Tells the driver of plans that there is a new one."""
