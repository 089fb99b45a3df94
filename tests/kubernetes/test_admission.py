"""Admission of the next attempt: the queue of TaskRuns before quotas and before the claim of one
task."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from perdure.kubernetes.admission import InLine, quantity, room


def line(name: str, **more: Any) -> InLine:
    known = {"created": 1, "claim": "", "waits": True, "due": 0, "attempt": 0, "open": False}
    return InLine(namespace="shop", name=name, **{**known, **more})


def at_work(name: str, **more: Any) -> InLine:
    return line(name, waits=False, open=True, attempt=1, **more)


def quota(used: dict[str, str], hard: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "small"}, "spec": spec, "status": {"hard": hard, "used": used}}


TWO = quota({"pods": "1"}, {"pods": "2"})
HALF = {"requests": {"cpu": "500m"}}

CASES: list[tuple[str, list[InLine], list[dict[str, Any]], dict[str, Any], str]] = [
    ("there is no quota", [line("a"), at_work("b")], [], {}, ""),
    ("one place is left", [], [TWO], {}, ""),
    ("an older one waits for it", [line("a")], [TWO], {}, "QuotaExceeded"),
    ("a younger one waits too", [line("z")], [TWO], {}, ""),
    ("one comes first later", [line("a", due=99)], [TWO], {}, ""),
    ("a pod is yet to come", [at_work("z", podless=True)], [TWO], {}, "QuotaExceeded"),
    ("no attempt fits in ever", [], [quota({}, {"pods": "0"})], {}, ""),
    ("a part of all pods", [], [quota({"pods": "2"}, {"pods": "2"}, scopes=["BestEffort"])], {}, ""),
    ("cpu is left", [], [quota({"cpu": "1500m"}, {"cpu": "2"})], HALF, ""),
    ("cpu is used up", [], [quota({"cpu": "1501m"}, {"cpu": "2"})], HALF, "QuotaExceeded"),
    ("nothing is said of cpu", [], [quota({"cpu": "2"}, {"cpu": "2"})], {}, ""),
    ("its claim is written to", [at_work("b", claim="one")], [], {}, "ClaimInUse"),
    ("another claim is", [at_work("b", claim="two")], [], {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("what", "others", "quotas", "resources", "reason"), CASES)
def test_who_may_begin(
    what: str,
    others: list[InLine],
    quotas: list[dict[str, Any]],
    resources: dict[str, Any],
    reason: str,
) -> None:
    """The oldest waiting TaskRun gets the free quota. A TaskRun that can never fit is left to
    Kubernetes."""
    found = room(line("m", claim="one"), resources, others, quotas, now=50)
    assert (found.obstacle.reason if found.obstacle else "") == reason, what


@pytest.mark.parametrize(
    ("text", "number"),
    [("2", "2"), ("500m", "0.5"), ("1Gi", "1073741824"), ("1e3", "1000"), ("2E", "2e18")],
)
def test_quantities_are_numbers(text: str, number: str) -> None:
    """Quantities are read in the forms that Kubernetes uses. Anything else is ignored."""
    assert quantity(text) == Decimal(number)
    assert quantity(f"x{text}") is None
