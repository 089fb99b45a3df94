"""Plans in SQL: `perdure.protocols.PlanStore`. The process that works on a plan holds its lease.

This module changes runs in only one way: it appends instructions. The plan's record of these
instructions is stored in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import Conflict, LostLease, NotFound
from perdure.store.fence import instruct
from perdure.store.rows import Row, columns_of, noun_of, nouns_of
from perdure.store.writes import StoreWrites

if TYPE_CHECKING:
    from perdure.rules.plan import PlannedRun, PlanRun

_OF_THE_ROW = ("created", "updated", "worker", "lease_until")
"""Fields of a plan that are stored in columns. The other fields are stored as JSON in `body`, which
only the holder of the lease writes."""


NOBODY: Mapping[str, str] = MappingProxyType({})


class Plans(StoreWrites):
    """Adds the methods of `PlanStore` to the store."""

    def add_plan(self, plan: PlanRun) -> PlanRun:
        with self._write() as write:
            row = write.one("add_plan", id=plan.id, name=plan.name, now=write.now, body=_body(plan))
            if row is None:
                raise Conflict(
                    f"A plan named {plan.name!r} already exists", f"perdure plan show {plan.name}"
                )
            write.audit_action("plan_added", plan.name)
            return _plan_of(row)

    def plan(self, ref: str) -> PlanRun:
        rows = self._rows("plan", ref=ref)
        if rows:
            return _plan_of(rows[0])
        raise NotFound(f"There is no plan {ref!r}", self._near_plans(ref))

    def plans(self, limit: int = 50) -> Sequence[PlanRun]:
        return list(map(_plan_of, self._rows("plans", limit=limit)))

    def claim_plan(self, plan: PlanRun, worker: str, lease_s: float) -> PlanRun | None:
        with self._write() as write:
            row = write.one(
                "claim_plan",
                id=plan.id,
                worker=plan.worker,
                lease_until=plan.lease_until,
                new_worker=worker,
                new_lease=write.now + int(lease_s * 1000),
                now=write.now,
            )
            if row is not None:
                return _plan_of(row)
            return None

    def renew_plan(self, plan: PlanRun, lease_s: float) -> PlanRun:
        with self._write() as write:
            row = write.one(
                "renew_plan",
                id=plan.id,
                worker=plan.worker,
                lease_until=write.now + int(lease_s * 1000),
            )
            return _held(row, plan)

    def put_plan(self, plan: PlanRun, instructions: Mapping[str, str] = NOBODY) -> PlanRun:
        with self._write() as write:
            for run_id, text in instructions.items():
                instruct(write, run_id, text)
            return _held(
                write.one(
                    "put_plan", id=plan.id, worker=plan.worker, body=_body(plan), now=write.now
                ),
                plan,
            )

    def release_plan(self, plan: PlanRun) -> None:
        with self._write() as write:
            write.do("release_plan", id=plan.id, worker=plan.worker, now=write.now)

    def put_planned(self, plan: PlanRun, planned: PlannedRun, instructions: str = "") -> None:
        from perdure.model.codec import encode

        with self._write() as write:
            if write.one("held_plan", id=plan.id, worker=plan.worker, now=write.now) is None:
                raise _lost(plan)
            write.do("put_planned", plan=plan.id, task=planned.task, body=encode(planned))
            if instructions:
                instruct(write, planned.run, instructions)

    def planned(self, plan_id: str) -> Sequence[PlannedRun]:
        from perdure.rules.plan import PlannedRun

        return nouns_of(self._rows("planned", plan=plan_id), PlannedRun)

    def _near_plans(self, ref: str) -> str:
        from difflib import get_close_matches

        close = get_close_matches(ref, [plan.name for plan in self.plans(500)], n=3, cutoff=0.5)
        if close:
            return "did you mean " + " or ".join(close) + "?"
        return "perdure plan ls"


def _body(plan: PlanRun) -> str:
    from perdure.model.codec import encode

    return encode(replace(plan, created=0, updated=0, worker="", lease_until=0))


def _plan_of(row: Row) -> PlanRun:
    from perdure.rules.plan import PlanRun

    return replace(noun_of(row["body"], PlanRun), **columns_of(row, _OF_THE_ROW))


def _held(row: Row, plan: PlanRun) -> PlanRun:
    if row is None:
        raise _lost(plan)
    return _plan_of(row)


def _lost(plan: PlanRun) -> LostLease:
    return LostLease(
        f"This worker no longer holds the plan {plan.name}; nothing was stored",
        f"perdure plan show {plan.name}",
    )
