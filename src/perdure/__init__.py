"""perdure: coding-agent runs that last.

`perdure.open()` and `perdure.connect()` are the doors for Python programs (see `perdure.library`);
`perdure.cli` is the command. Nothing is loaded before it is used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is too dear for `perdure ls`
if TYPE_CHECKING:
    from typing import Any

    from perdure.errors import PerdureError as PerdureError
    from perdure.library import Runner as Runner
    from perdure.library import connect as connect
    from perdure.library import open as open
    from perdure.library.awaited import AsyncRunner as AsyncRunner
    from perdure.model import Attempt as Attempt
    from perdure.model import RunState as RunState
    from perdure.model import Session as Session
    from perdure.model import TaskRun as TaskRun
    from perdure.model import TaskSpec as TaskSpec
    from perdure.model import Verdict as Verdict
    from perdure.plan import PlanRun as PlanRun
    from perdure.plan import PlanState as PlanState
    from perdure.sessions import plan_scope as plan_scope

__version__ = "0.1.0"

_ROOMS = {
    **dict.fromkeys(("Runner", "connect", "open"), "library"),
    **dict.fromkeys(("Attempt", "RunState", "Session", "TaskRun", "TaskSpec", "Verdict"), "model"),
    **dict.fromkeys(("PlanRun", "PlanState"), "plan"),
    "AsyncRunner": "library.awaited",
    "PerdureError": "errors",
    "plan_scope": "sessions",
}

__all__ = [
    "AsyncRunner",
    "Attempt",
    "PerdureError",
    "PlanRun",
    "PlanState",
    "RunState",
    "Runner",
    "Session",
    "TaskRun",
    "TaskSpec",
    "Verdict",
    "connect",
    "open",
    "plan_scope",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        from importlib import import_module

        return getattr(import_module(f"perdure.{_ROOMS[name]}"), name)
    raise AttributeError(f"perdure has no {name!r}")
