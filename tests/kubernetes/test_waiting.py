"""The operator waits without a limit, and in order, for a quota, for room on the nodes and for the
single writer of a task. Waiting is not a failure.

Here the operator waits only a second for a person, so any wait that counted as one for a person
would fail at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.place import Place
from tests.kubernetes.place import place as a_place
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.s3 import Bucket

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

NUMBER, AT_ONCE = 20, 2
MOST = "200Gi"
"""More than half of the 256Gi of memory that each of the two nodes reports."""


@pytest.fixture
def impatient(cluster: Cluster, bucket: Bucket) -> Iterator[Place]:
    """Make a namespace whose operator waits only one second for a person to act."""
    with a_place(cluster, bucket, more=("--patience", "1s")) as made:
        yield made


def limit(place: Place, **hard: str) -> None:
    quota = place.of("v1", "resourcequotas")
    place.api.create(quota, {"metadata": {"name": "small"}, "spec": {"hard": hard}})
    place.cluster.until(
        lambda: place.api.get(f"{quota}/small").get("status", {}).get("hard"),
        "the quota is in force",
    )


def test_a_queue_through_a_quota(impatient: Place) -> None:
    """Twenty TaskRuns under a quota of two pods: all succeed at their first attempt, the oldest
    first. A waiting TaskRun is queued and says what it waits for."""
    limit(impatient, pods=str(AT_ONCE))
    runs = [impatient.scripted(f"run-{number:02}", "works 1") for number in range(NUMBER)]
    told = runs[-1].waits_for("QuotaExceeded")
    assert "the quota small" in told["message"]
    assert runs[-1].status()["phase"] == "Queued" and not runs[-1].attempts()
    began = []
    for run in runs:
        status = run.settled()
        assert [each["outcome"] for each in status["attempts"]] == ["succeeded"]
        assert run.condition("Waiting") is None
        run.one_of_each()
        began.append(status["attempts"][0]["started"])
    # TaskRuns that begin together have no order among each other, because both pods of the quota
    # may end at the same time.
    assert all(one <= later for one, later in zip(began, began[AT_ONCE:], strict=False))


def test_one_writer_of_a_task(impatient: Place) -> None:
    """A second TaskRun of a running task is queued until the first one has ended."""
    first = impatient.scripted("first", "hangs 1 0", task="cart")
    first.until(lambda: first.status().get("phase") == "Running", "it runs")
    second = impatient.scripted("second", task="cart")
    assert "first" in second.waits_for("ClaimInUse")["message"]
    assert second.status()["phase"] == "Queued" and not second.attempts()
    first.patch(spec={"suspend": True})
    first.settled("Suspended")
    assert [each["outcome"] for each in second.settled()["attempts"]] == ["succeeded"]


def test_full_nodes(impatient: Place) -> None:
    """A pod for which no node has room is queued without a limit. The phase is Running only while
    an agent runs."""
    most = {"resources": {"requests": {"memory": MOST}}}
    here = [impatient.scripted(f"here-{number}", "hangs 1 0", pod=most) for number in range(2)]
    for run in here:
        run.until(lambda run=run: run.status().get("phase") == "Running", "it runs")
    waits = impatient.scripted("waits", pod=most)
    assert "Insufficient memory" in waits.waits_for("NoRoom")["message"]
    since = waits.condition("Waiting")
    waits.patch(metadata={"annotations": {"looked": "at"}})  # so the operator decides once more
    waits.until(lambda: waits.status().get("phase") == "Queued", "it is queued")
    assert waits.condition("Waiting") == since and not waits.attempts()[0].get("outcome")
    here[0].patch(spec={"suspend": True})
    assert [each["outcome"] for each in waits.settled()["attempts"]] == ["succeeded"]


def test_what_only_a_person_can_mend_has_an_end(impatient: Place) -> None:
    """No node will ever have the required label. Only a person can correct that, so the wait has a
    limit."""
    run = impatient.scripted("nowhere", pod={"nodeSelector": {"disk": "none"}})
    status = run.settled("Failed")
    assert [each["outcome"] for each in status["attempts"]] == ["config_error"]
    assert run.condition("NeedsPerson")
