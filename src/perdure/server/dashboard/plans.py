"""The pages of plans. They show the tasks in columns; tasks in one column may run at the same
time."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from perdure.engine.plans import report_of
from perdure.engine.service import probe_of
from perdure.model.reports import TaskOfPlan
from perdure.server.dashboard.visits import Visit

SHOWN = 100


def plans(visit: Visit) -> Response:
    """Show `/plans`, the list of plans."""
    look, probe = visit.desk.look, probe_of(visit.desk.engine.state, visit.desk.engine.host)
    reports = [report_of(look, each, probe) for each in look.plans(SHOWN)]
    return visit.page("plans.html", plans=reports)


def plan(visit: Visit) -> Response:
    """Show `/plans/NAME`, the tasks of one plan."""
    look = visit.desk.look
    report = report_of(
        look,
        look.plan(visit.named("name")),
        probe_of(visit.desk.engine.state, visit.desk.engine.host),
    )
    return visit.page("plan.html", plan=report, columns=columns(report.tasks), here=visit.here)


def columns(tasks: Sequence[TaskOfPlan]) -> list[list[TaskOfPlan]]:
    """Return the tasks in columns, from left to right. Each task is in a later column than all
    tasks that it needs."""
    depth: dict[str, int] = {}
    left = list(tasks)
    while left:
        ready = [each for each in left if all(name in depth for name in each.needs)]
        # This never happens, because a plan with a cycle is refused when it is submitted.
        if not ready:
            ready = left
        for each in ready:
            depth[each.name] = 1 + max((depth.get(name, 0) for name in each.needs), default=0)
        left = [each for each in left if each.name not in depth]
    found = []
    for column in range(1, max(depth.values(), default=0) + 1):
        found.append([each for each in tasks if depth[each.name] == column])
    return found
