"""The order of `perdure ls`, and the budget that a plan has left, from stored runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure import store as stores
from perdure.cli.runs.filters import read_rows_from_store
from perdure.cli.runs.ls import READ
from perdure.engine.plans import status
from perdure.model import CutCost, ReplyCosts, TaskSpec, Usage
from perdure.rules.plan import Forking, Plan, PlannedRun, PlanRun, PlanTask
from perdure.rules.plan.conversations import assign_strands
from perdure.store import fast_list
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import FAILURE, SUCCESS, begun, claimed, submit


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(stores.open(tmp_path / "perdure.db")) as found:
        yield found


def test_the_run_that_changed_last_comes_first(
    store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The age that `ls` shows is the time since the last change. The list is sorted by it,
    whichever way the runs are read."""
    runs = [submit(store, name=name) for name in ("old", "middle", "new")]
    for run, how in ((runs[2], SUCCESS), (runs[0], FAILURE), (runs[1], FAILURE)):
        time.sleep(0.002)
        store.finish(claimed(store, run), how)
    short = fast_list.newest(str(tmp_path / "perdure.db"), (), 10)
    assert short is not None
    monkeypatch.setenv("PERDURE_STATE", str(tmp_path))
    long = read_rows_from_store((), 10, (), 0, READ)
    assert [row["name"] for row in short] == ["middle", "old", "new"]
    assert [row["name"] for row in long] == ["middle", "old", "new"]


def test_a_plan_keeps_a_reserve_for_replies_that_were_cut_off(store: SqlStore) -> None:
    """A task of a plan gets the rest of the budget without the reserve. If nothing is left, no task
    begins, and the reason names both amounts."""
    task = PlanTask(name="one", prompt="Do it.", agent="claude")
    made = Plan(name="shop", tasks=(task,), budget_usd=1.0)
    strands = assign_strands(made, lambda agent: Forking.ANYWHERE)
    seed = TaskSpec(prompt="")
    new = PlanRun(id="5" * 32, name="shop", plan=made, seed=seed, file="", strands=strands)
    plan = store.claim_plan(store.add_plan(new), "ann", 60)
    assert plan is not None
    run = submit(store)
    store.put_planned(plan, PlannedRun(task="one", run=run.id))
    claim = claimed(store, run)
    store.begin(claim, begun(run))
    costs = ReplyCosts(cut=(CutCost(charged=0.1, most=0.1),), dearest=0.4)
    store.finish(claim, replace(FAILURE, usage=Usage(cost_usd=0.5), costs=costs))
    assert status.spent(store, plan) == 0.5
    assert status.share(store, plan, 0.0) == pytest.approx(0.2)
    assert status.overspent(store, plan) == ""
    small = replace(plan, plan=replace(made, budget_usd=0.7))
    assert status.overspent(store, small) == (
        "the budget may be spent: $0.50 of $0.70 is charged, and 1 reply that was cut off may have "
        "cost up to $0.30 more than that; raise it in the file, then perdure plan retry FILE"
    )
