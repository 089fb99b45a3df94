"""Tests of plans. A plan is stored as it was started, and only the worker that holds its lease can
write it."""

from __future__ import annotations

from itertools import count

import pytest
from msgspec.structs import replace

from perdure.errors import Conflict, LostLease, NotFound
from perdure.model import TaskSpec
from perdure.rules.plan import Plan, PlannedRun, PlanRun, PlanState, PlanTask, TaskEnd
from perdure.rules.plan.conversations import assign_strands
from perdure.testing.stores.samples import LEASE_S, Store, submit, texts_of

_numbers = count(1)


def plan_of(name: str = "") -> PlanRun:
    """Return a plan with two tasks. The second task needs the first."""
    number = next(_numbers)
    tasks = (
        PlanTask(name="a", prompt="Do a.", agent="claude"),
        PlanTask(name="b", prompt="Do b.", agent="claude", needs=("a",)),
    )
    name = name or f"plan-{number}"
    plan = Plan(name=name, tasks=tasks, verify="true", jobs=2)
    seed = TaskSpec(prompt="", repo="/r", base="c0ffee")
    return PlanRun(
        id=f"p{number:08x}",
        name=name,
        plan=plan,
        seed=seed,
        file="/r/plan.toml",
        strands=assign_strands(plan),
    )


class PlanSuite:
    """Tests of `add_plan`, `plan`, `plans`, `claim_plan`, `renew_plan`, `put_plan`, `release_plan`,
    `put_planned` and `planned`."""

    def test_a_plan_is_kept_as_it_was_begun(self, store: Store) -> None:
        """A plan is found by name and by id, and listed newest first. A second plan with the same
        name raises Conflict."""
        first, second = store.add_plan(plan_of("shop")), store.add_plan(plan_of())
        assert first.created > 0
        assert replace(store.plan("shop"), created=0, updated=0) == replace(
            first, created=0, updated=0
        )
        assert store.plan(first.id) == store.plan("shop")
        assert [plan.name for plan in store.plans()] == [second.name, "shop"]
        with pytest.raises(Conflict):
            store.add_plan(plan_of("shop"))
        with pytest.raises(NotFound) as missing:
            store.plan("shap")
        assert "shop" in missing.value.hint

    def test_one_worker_at_a_time(self, store: Store) -> None:
        """A worker reads a plan and then claims it. The claim fails if another worker has claimed
        the plan in between, or if the lease was renewed in between."""
        seen = store.add_plan(plan_of())
        held = store.claim_plan(seen, "ann", LEASE_S)
        assert held is not None and held.worker == "ann" and held.lease_until > store.now()
        assert store.claim_plan(seen, "ben", LEASE_S) is None
        store.renew_plan(held, LEASE_S + 1)
        assert store.claim_plan(held, "ben", LEASE_S) is None
        taken = store.claim_plan(store.plan(held.id), "ben", LEASE_S)
        assert taken is not None and taken.worker == "ben"
        with pytest.raises(LostLease):
            store.renew_plan(held, LEASE_S)

    def test_only_the_holder_writes(self, store: Store) -> None:
        """The state and the tasks of a plan are written only under its lease. If a worker lost the
        lease, its writes are refused and nothing is stored. Only the holder can release the lease.
        """
        held = store.claim_plan(store.add_plan(plan_of()), "ann", LEASE_S)
        assert held is not None
        store.put_plan(replace(held, state=PlanState.FAILED, reason="b failed"))
        there = store.plan(held.id)
        assert (there.state, there.reason, there.worker) == (PlanState.FAILED, "b failed", "ann")
        taken = store.claim_plan(there, "ben", LEASE_S)
        assert taken is not None
        with pytest.raises(LostLease):
            store.put_plan(replace(held, state=PlanState.SUCCEEDED))
        with pytest.raises(LostLease):
            store.put_planned(held, PlannedRun(task="a", run="r"))
        assert store.planned(held.id) == []
        store.release_plan(held)
        assert store.plan(held.id).worker == "ben"
        store.release_plan(taken)
        assert (store.plan(held.id).worker, store.plan(held.id).lease_until) == ("", 0)

    def test_instructions_stand_with_what_is_known_of_them(self, store: Store) -> None:
        """New instructions for runs of a plan are stored in the same transaction as the plan or the
        task. If the worker lost the lease, or if a run does not exist, nothing changes."""
        held = store.claim_plan(store.add_plan(plan_of()), "ann", LEASE_S)
        assert held is not None
        one, two = submit(store), submit(store)
        told = {one.id: "More.", two.id: "Even more."}
        with pytest.raises(NotFound):
            store.put_plan(replace(held, reason="changed"), {**told, "nobody": "x"})
        assert (store.plan(held.id).reason, len(store.contexts(one.id))) == ("", 1)
        store.put_plan(replace(held, reason="changed"), told)
        store.put_planned(
            held, PlannedRun(task="a", run=one.id, checks=1), instructions="The check failed."
        )
        assert texts_of(store.contexts(one.id)) == [
            "do it",
            "More.",
            "The check failed.",
        ]
        assert texts_of(store.contexts(two.id)) == ["do it", "Even more."]
        late = replace(held, worker="ben")
        with pytest.raises(LostLease):
            store.put_plan(late, told)
        with pytest.raises(LostLease):
            store.put_planned(late, PlannedRun(task="a", run=one.id), instructions="Late.")
        assert (store.get(one.id).context_version, store.get(two.id).context_version) == (3, 2)

    def test_what_became_of_the_tasks(self, store: Store) -> None:
        """Each task of a plan is returned once, with its latest data. The tasks are in the order in
        which they were first stored. Tasks of other plans are not returned."""
        held = store.claim_plan(store.add_plan(plan_of()), "ann", LEASE_S)
        other = store.claim_plan(store.add_plan(plan_of()), "ann", LEASE_S)
        assert held is not None and other is not None
        second = PlannedRun(
            task="b", run="r2", merged=("a",), conflicts=(("x.py", "both changed it"),)
        )
        first = PlannedRun(
            task="a", run="r1", end=TaskEnd(commit="c0", checkpoint=3, session_id="s", turns=2)
        )
        store.put_planned(held, replace(first, end=None))
        store.put_planned(held, second)
        store.put_planned(held, first)
        assert list(store.planned(held.id)) == [first, second]
        assert store.planned(other.id) == []
