"""Services that the API, the dashboard and the metrics share. Created by `perdure serve`. Also
finds the run that a query of the audit trail names, for the API and the dashboard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from perdure.config import Settings
from perdure.engine.attempt import Engine
from perdure.engine.attempt.engine import EngineStore
from perdure.errors import NotFound
from perdure.model import TaskSpec
from perdure.rules.plan import PlanRun
from perdure.server.journal import Journal
from perdure.server.principal import Principals


class ServiceCheck(Struct, frozen=True):
    """Result of one check of this machine. `state` is `ok`, `warn` (works with restrictions) or
    `bad` (a run would fail)."""

    topic: str
    state: str
    message: str


class Parts(Struct, frozen=True, kw_only=True):
    """The shared services. `engine` is for actions. `store` is for reading; it uses a separate
    connection and blocks no writer."""

    engine: Engine
    store: EngineStore
    settings: Settings
    principals: Principals
    journal: Journal
    seed: TaskSpec
    """Default values of a new task's fields, from the settings of this machine."""
    checks: Callable[[], Sequence[ServiceCheck]]
    """Runs the checks of `perdure doctor`. This takes a while."""
    say: Callable[[str], None] = lambda line: None
    """Writes a line to the log of the service."""
    dispatch: Callable[[], None] = lambda: None
    """Wakes the dispatcher. Called when there may be a new delivery."""
    drive_plans: Callable[[], None] = lambda: None
    """Wakes the thread that drives plans. Called when a plan was added."""
    stop_plan: Callable[[str], PlanRun] | None = None
    """Stops the plan with the given name. None if this process drives no plans."""
    retry_plan: Callable[[str, str], PlanRun] | None = None
    """Continues a stopped or failed plan. The arguments are the names of the plan and of the only
    task to continue; an empty second name continues all. None if this process drives no plans."""


def run_id_of(store: EngineStore, ref: str) -> str:
    """Return the id of the run with the name or id `ref`; empty if `ref` is empty. A removed run
    can only be named by its full id. Raises NotFound."""
    if not ref:
        return ""
    try:
        return store.get(ref).id
    except NotFound:
        if any(run.id == ref for run in store.placed()):
            return ref
        raise
