"""When a TaskRun gets its finalizer, loses it, and is deleted automatically: single decisions, made
from the observed state."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.kubernetes import step as steps
from perdure.kubernetes.status import stamp
from perdure.kubernetes.wanted import FINALIZER, wanted
from tests.kubernetes import making

NOW = 1_795_000_000_000
KEEP, DELETE = {"mode": "Claim"}, {"mode": "Claim", "reclaim": "Delete"}
STORE = {"mode": "Checkpoints", "checkpoints": "s3://bucket/prefix"}


def seen(
    workspace: Any,
    *,
    held: bool = True,
    saved: bool = False,
    deleting: bool = False,
    leaving: bool | None = None,
    ttl: int | None = None,
) -> steps.TaskRunFacts:
    """Return the facts about a TaskRun that succeeded ten seconds ago and was processed since."""
    body = making.taskrun(workspace=workspace, ttlSecondsAfterFinished=ttl)
    body["metadata"]["finalizers"] = [FINALIZER] if held else []
    if deleting:
        body["metadata"]["deletionTimestamp"] = stamp(NOW)
    record = {"number": 1, "job": "j", "jobUID": "u", "pod": "p", "outcome": "succeeded"}
    body["status"] = {
        "phase": "Succeeded",
        "observedGeneration": 1,
        "contextVersion": 1,
        "contexts": 1,
        "attempt": 1,
        "attempts": [record],
        "workspace": {"saved": True} if saved else {},
        "completionTime": stamp(NOW - 10_000),
    }
    return steps.TaskRunFacts(
        run=wanted(body), fresh=True, recorded=frozenset({1}), leaving=leaving
    )


HELD = steps.HoldFinalizer()
CASES: list[tuple[str, steps.TaskRunFacts, Any]] = [
    ("all work stays on a kept claim", seen(KEEP), steps.Release()),
    ("nobody knows what the spec means", seen({"mode": 7}), None),
    ("the claim goes with it", seen(DELETE, saved=True), None),
    ("reclaim was changed to Delete", seen(DELETE, held=False), HELD),
    ("all is in the store", seen(STORE, saved=True), steps.Release()),
    ("not all is in the store", seen(STORE), None),
    ("its time is not over", seen(KEEP, held=False, ttl=60), None),
    ("its time is over", seen(KEEP, held=False, ttl=5), steps.DeleteExpired()),
    ("its time is over, unsaved", seen(DELETE, ttl=5), None),
    ("its time is over, saved", seen(DELETE, saved=True, ttl=5), steps.DeleteExpired()),
    ("deleted, unsaved", seen(DELETE, deleting=True), steps.CheckNamespace()),
    ("deleted with its namespace", seen(DELETE, deleting=True, leaving=True), steps.Release()),
    ("deleted alone", seen(DELETE, deleting=True, leaving=False), None),
]


@pytest.mark.parametrize(("what", "given", "step"), CASES, ids=[case[0] for case in CASES])
def test_when_it_is_held_and_let_go(what: str, given: steps.TaskRunFacts, step: Any) -> None:
    """None means that no finalizer is added or removed, and nothing is deleted."""
    found = steps.next_step(given, NOW)
    if step is None:
        assert isinstance(found, steps.WriteStatus | steps.Wait), what
    else:
        assert found == step, what
