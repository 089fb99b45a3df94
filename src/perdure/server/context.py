"""Shared services of the API, the dashboard and the metrics. Made by `perdure serve`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.model import TaskSpec
from perdure.rules.plan import PlanRun
from perdure.server.journal import Journal
from perdure.server.principal import Principals


class ServiceCheck(Struct, frozen=True):
    """Result of one check. `state`: `ok`, `warn` (works with restrictions) or `bad` (a run would
    fail)."""

    topic: str
    state: str
    message: str


class Parts(Struct, frozen=True, kw_only=True):
    """Shared services. `engine` is for verbs that act, `store` for reading: a separate connection,
    which blocks no writer."""

    engine: Engine
    store: EngineStore
    settings: Settings
    principals: Principals
    journal: Journal
    seed: TaskSpec
    """Default fields of a new task, from the settings of this machine."""
    checks: Callable[[], Sequence[ServiceCheck]]
    """Checks everything that a run relies on; takes a while."""
    say: Callable[[str], None] = lambda line: None
    """Writes a line to the service's log."""
    dispatch: Callable[[], None] = lambda: None
    """Wakes the dispatcher, because there may be a new delivery."""
    drive_plans: Callable[[], None] = lambda: None
    """Wakes the driver of plans, because there is a new plan."""
    stop_plan: Callable[[str], PlanRun] | None = None
    """Stops a plan; None if this process drives none."""
    retry_plan: Callable[[str, str], PlanRun] | None = None
    """Continues a stopped or failed plan, or only one task of it."""
