"""perdure: runs of coding agents that survive kills, restarts and moves.

`perdure.open()` and `perdure.connect()` are the entry points for Python programs: the first returns
a `Runner`, the second an `AsyncRunner` for an event loop. `perdure.model.events` lists everything
that can happen, `perdure.errors` every error. The command line is in `perdure.cli`. Modules are
loaded when they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing is too slow for `perdure ls`
if TYPE_CHECKING:
    from perdure import errors as errors
    from perdure.engine.sessions.service import plan_scope as plan_scope
    from perdure.errors import AgentMissing as AgentMissing
    from perdure.errors import ConfigError as ConfigError
    from perdure.errors import Conflict as Conflict
    from perdure.errors import NotFound as NotFound
    from perdure.errors import PerdureError as PerdureError
    from perdure.errors import StoreError as StoreError
    from perdure.errors import UsageError as UsageError
    from perdure.errors import WorkspaceError as WorkspaceError
    from perdure.library import connect as connect
    from perdure.library import open as open
    from perdure.library.awaited import AsyncRunner as AsyncRunner
    from perdure.library.options import TaskOptions as TaskOptions
    from perdure.library.results import RunResult as RunResult
    from perdure.library.runner import Runner as Runner
    from perdure.model import Attempt as Attempt
    from perdure.model import Checkpoint as Checkpoint
    from perdure.model import Condition as Condition
    from perdure.model import ContinuityPolicy as ContinuityPolicy
    from perdure.model import Liveness as Liveness
    from perdure.model import OnEdit as OnEdit
    from perdure.model import Outcome as Outcome
    from perdure.model import OutcomeKind as OutcomeKind
    from perdure.model import Permissions as Permissions
    from perdure.model import Receipt as Receipt
    from perdure.model import RunState as RunState
    from perdure.model import Session as Session
    from perdure.model import TaskRun as TaskRun
    from perdure.model import TaskSpec as TaskSpec
    from perdure.model import Usage as Usage
    from perdure.model import Verdict as Verdict
    from perdure.model import Workspace as Workspace
    from perdure.model import events as events
    from perdure.model.events import AnyEvent as AnyEvent
    from perdure.model.events import Record as Record
    from perdure.protocols import Observer as Observer
    from perdure.rules.plan import PlanRun as PlanRun
    from perdure.rules.plan import PlanState as PlanState

__version__ = "0.1.0"

_MODEL = """Attempt Checkpoint Condition ContinuityPolicy Liveness OnEdit Outcome OutcomeKind
Permissions Receipt RunState Session TaskRun TaskSpec Usage Verdict Workspace"""
_ERRORS = """AgentMissing ConfigError Conflict NotFound PerdureError StoreError UsageError
WorkspaceError"""

_PLACES = {
    **dict.fromkeys(("connect", "open"), "library"),
    **dict.fromkeys(_MODEL.split(), "model"),
    **dict.fromkeys(_ERRORS.split(), "errors"),
    **dict.fromkeys(("AnyEvent", "Record"), "model.events"),
    **dict.fromkeys(("PlanRun", "PlanState"), "rules.plan"),
    "AsyncRunner": "library.awaited",
    "Observer": "protocols",
    "RunResult": "library.results",
    "Runner": "library.runner",
    "TaskOptions": "library.options",
    "plan_scope": "engine.sessions.service",
}
"""The module that defines each public name. A module is imported when one of its names is first
used."""
_MODULES = {"errors": "errors", "events": "model.events"}

__all__ = [
    "AgentMissing",
    "AnyEvent",
    "AsyncRunner",
    "Attempt",
    "Checkpoint",
    "Condition",
    "ConfigError",
    "Conflict",
    "ContinuityPolicy",
    "Liveness",
    "NotFound",
    "Observer",
    "OnEdit",
    "Outcome",
    "OutcomeKind",
    "PerdureError",
    "Permissions",
    "PlanRun",
    "PlanState",
    "Receipt",
    "Record",
    "RunResult",
    "RunState",
    "Runner",
    "Session",
    "StoreError",
    "TaskOptions",
    "TaskRun",
    "TaskSpec",
    "Usage",
    "UsageError",
    "Verdict",
    "Workspace",
    "WorkspaceError",
    "connect",
    "errors",
    "events",
    "open",
    "plan_scope",
]


def __dir__() -> list[str]:
    """Return all public names, also those that are not loaded yet, for completion and `help`."""
    return sorted({*__all__, "__doc__", "__file__", "__name__", "__version__"})


# Type checkers do not see this function. If they did, they would accept any misspelled name.
if not TYPE_CHECKING:

    def __getattr__(name):
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"perdure.{_MODULES[name]}")
        if name in _PLACES:
            return getattr(import_module(f"perdure.{_PLACES[name]}"), name)
        raise AttributeError(f"module 'perdure' has no attribute {name!r}")
