"""A small part of `make operator-kills` and `make kubernetes-faults`: the operator is killed
repeatedly, and some kinds of faults are tried once each."""

from __future__ import annotations

import pytest

from tests.kubernetes.kills import play
from tests.kubernetes.operators import install
from tests.kubernetes.trials import trials
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.s3 import Bucket

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


def test_the_operator_is_killed_at_any_moment(cluster: Cluster) -> None:
    """The operator is killed five times, at its requests and between them. Each attempt has one Job
    and one outcome, and every run ends as planned."""
    install(cluster)
    done = play(cluster, 5, seed=1, runs=2)
    assert done.kills == 5 and done.runs >= 2 and not done.wrong, done.wrong


@pytest.mark.parametrize(
    "kind", ["answers are lost", "TaskRun is deleted, unsaved", "pod runs out of memory"]
)
def test_what_may_happen(cluster: Cluster, bucket: Bucket, kind: str) -> None:
    """In a trial of each kind the fault happens, and every promise holds."""
    install(cluster)
    (trial,) = trials(cluster, bucket, kind, 1, seed=1)
    assert trial.fired and not trial.wrong, trial.wrong
