"""Builds the report of a plan that every `--json` prints: one stable, versioned object, read from
the store alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from perdure.engine.attempt.engine import EngineStore
from perdure.engine.plans.budget import spent
from perdure.engine.plans.status import Stand, before, blocked, standing
from perdure.host import process
from perdure.host.process import Probe
from perdure.model import NOWHERE, Host, RunState, Usage
from perdure.model.codec import plain
from perdure.rules.plan import PlanRun, PlanState
from perdure.rules.plan.conversations import joins, order

SCHEMA_VERSION = 1


def report_of(store: EngineStore, plan: PlanRun, probe: Probe | None = None) -> dict[str, Any]:
    """Return the object that `perdure plan run` and `plan show` print with --json. `probe`: looks
    at this host's processes; without it the liveness of tasks is unknown."""
    stands = standing(store, plan)
    last = stands[order(plan.plan)[-1].name]
    place = last.run.workspace if last.run is not None else None
    tasks = [_task(store, stands[task.name], stands, probe) for task in plan.plan.tasks]
    total = Usage()
    for stand in stands.values():
        total = total + _used(store, stand)
    return {
        "schema_version": SCHEMA_VERSION,
        "id": plan.id,
        "name": plan.name,
        "state": state_of(store, plan, probe.host if probe is not None else NOWHERE),
        "reason": plan.reason,
        "file": plan.file,
        "repo": plan.seed.repo,
        "base": plan.seed.base,
        "jobs": plan.plan.jobs,
        "policy": str(plan.plan.continuity),
        "verify": plan.plan.verify,
        "verified": plan.verified,
        "tasks": tasks,
        "usage": plain(total),
        "budget_usd": plan.plan.budget_usd,
        "spent_usd": round(spent(store, plan), 6) if plan.plan.budget_usd else 0.0,
        "result": {
            "task": last.task.name,
            "path": place.path if place is not None else "",
            "branch": place.branch if place is not None else "",
            "backend": str(place.backend) if place is not None else "",
            "run": last.run.name if last.run is not None else "",
            "base": plan.seed.base,
            "commit": last.end.commit if last.end is not None else "",
        },
        "created": plan.created,
        "updated": plan.updated,
    }


def state_of(store: EngineStore, plan: PlanRun, host: Host = NOWHERE) -> str:
    """Return `running`, `stopped` (no process drives it), `succeeded` or `failed`."""
    if plan.state is not PlanState.OPEN:
        return str(plan.state)
    alive = process.worker_alive(plan.worker, host) if plan.worker else False
    return "running" if alive or (alive is None and plan.lease_until >= store.now()) else "stopped"


def row_of(store: EngineStore, plan: PlanRun, host: Host = NOWHERE) -> dict[str, Any]:
    """Return a row of the list that `perdure plan ls --json` prints."""
    stands = standing(store, plan)
    return {
        "name": plan.name,
        "state": state_of(store, plan, host),
        "tasks": len(stands),
        "done": sum(stand.end is not None for stand in stands.values()),
        "file": plan.file,
        "updated": plan.updated,
    }


def words_of(stand: Stand, stands: Mapping[str, Stand]) -> str:
    """Return the state of a task in one word: `waits`, `ready`, `blocked`, or the state of its
    run."""
    if stand.end is not None:
        return str(RunState.SUCCEEDED)
    if stand.run is not None:
        return (
            str(RunState.RUNNING) if stand.run.state is RunState.SUCCEEDED else str(stand.run.state)
        )
    if blocked(stand, stands):
        return "blocked"
    return "ready" if all(stands[name].end is not None for name in before(stand)) else "waits"


def _task(
    store: EngineStore, stand: Stand, stands: Mapping[str, Stand], probe: Probe | None
) -> dict[str, Any]:
    run, strand, planned = stand.run, stand.strand, stand.planned
    found = None
    if probe is not None and run is not None:
        found = probe.liveness(run, store.now(), partial(store.get, run.id))
    attempts = store.attempts(run.id) if run is not None else ()
    receipt = attempts[-1].receipt if attempts else None
    place = run.workspace if run is not None else None
    return {
        "name": stand.task.name,
        "agent": stand.task.agent,
        "needs": list(stand.task.needs),
        "state": words_of(stand, stands),
        "liveness": str(found) if found is not None else None,
        "reason": run.reason if run is not None else _why(stand, stands),
        "conversation": strand.name,
        "how": joins(strand),
        "instead": strand.instead,
        "run": run.name if run is not None else "",
        "run_id": run.id if run is not None else "",
        "attempts": len(attempts),
        "session_id": attempts[-1].session_id if attempts else "",
        "continuation": str(attempts[0].continuation.kind)
        if attempts and attempts[0].continuation is not None
        else None,
        "verdict": str(receipt.verdict) if receipt is not None else None,
        "usage": plain(_used(store, stand)),
        "files": list(stand.task.files),
        "changed": [name.encode("utf-8", "replace").decode() for name in stand.end.files]
        if stand.end is not None
        else [],
        "merged": list(planned.merged) if planned is not None else [],
        "conflicts": [{"file": file, "reason": reason} for file, reason in planned.conflicts]
        if planned is not None
        else [],
        "branch": place.branch if place is not None else "",
        "path": place.path if place is not None else "",
        "commit": stand.end.commit if stand.end is not None else "",
        "started": attempts[0].started if attempts else None,
        "ended": attempts[-1].ended if attempts else None,
    }


def _why(stand: Stand, stands: Mapping[str, Stand]) -> str:
    if failed := blocked(stand, stands):
        return f"{failed} failed"
    left = [name for name in before(stand) if stands[name].end is None]
    return f"needs {', '.join(left)}" if left else ""


def _used(store: EngineStore, stand: Stand) -> Usage:
    total = Usage()
    for attempt in store.attempts(stand.run.id) if stand.run is not None else ():
        total = total + attempt.usage
    return total
