"""The signs of a TaskRun that an observer sees: Events, conditions, metrics, logs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.operating import Operator, Runs
from tests.kubernetes.resource import installed
from tests.servers.kubernetes.cluster import Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


def told(runs: Runs, name: str) -> list[tuple[str, str, str]]:
    """Return type, reason and message of the TaskRun's Events, each as often as it was sent."""
    uid = runs.get(name)["metadata"]["uid"]
    found = runs.cluster.api.items(
        f"/api/v1/namespaces/{runs.namespace}/events", fieldSelector=f"involvedObject.uid={uid}"
    )
    return sorted((each["type"], each["reason"], each["message"]) for each in found)


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each["status"] for each in status["conditions"]}


def test_what_a_taskrun_shows(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """With two operators every step gives one Event. `kubectl wait` has a condition for success and
    one for failure. Attempts are counted by namespace, agent and verdict. Each line of the log is
    one JSON object."""
    installed(cluster)
    runs = Runs(cluster, namespace)
    log = tmp_path / "log"
    flags = ("-n", namespace, "--patience", "1s", "--log-format", "json")
    with (
        Operator(cluster.kubeconfig, log, *flags) as operator,
        Operator(cluster.kubeconfig, tmp_path / "other", *flags) as other,
    ):
        runs.make("fix", "fails 1 0")
        runs.make("nowhere", pod={"nodeSelector": {"disk": "none"}})
        status = runs.phase("fix", "Succeeded", "Failed")
        assert conditions(status) == {
            "Complete": "True",
            "Failed": "False",
            "Reconciling": "False",
            "Stalled": "False",
        }
        assert {each["observedGeneration"] for each in status["conditions"]} == {1}
        assert status["completionTime"] >= status["attempts"][-1]["ended"]
        cluster.kubectl(
            "wait", "-n", namespace, "ptr/nowhere", "--for=condition=Failed", "--timeout=120s"
        )
        failed = conditions(runs.status("nowhere"))
        assert (failed["Stalled"], failed["Complete"]) == ("True", "False")

        first, second = (each["pod"] for each in status["attempts"])
        nodes = [each["node"] for each in status["attempts"]]
        jobs = [each["job"] for each in status["attempts"]]
        cluster.until(
            lambda: ("Normal", "Succeeded") in [each[:2] for each in told(runs, "fix")],
            "its end is told",
        )
        assert told(runs, "fix") == sorted(
            [
                ("Normal", "AttemptBegun", f"attempt 1 begins as Job {jobs[0]}"),
                ("Normal", "AttemptRunning", f"attempt 1 runs in pod {first} on node {nodes[0]}"),
                (
                    "Warning",
                    "AttemptEnded",
                    "attempt 1: failed (as it was told to); receipt fresh",
                ),
                ("Normal", "AttemptBegun", f"attempt 2 begins as Job {jobs[1]}"),
                ("Normal", "AttemptRunning", f"attempt 2 runs in pod {second} on node {nodes[1]}"),
                ("Normal", "AttemptEnded", "attempt 2: succeeded; receipt native"),
                ("Normal", "Succeeded", "it has ended after attempt 2"),
            ]
        )
        reasons = [each[:2] for each in told(runs, "nowhere")]
        for reason in ("Unschedulable", "NeedsPerson", "Failed"):
            assert reasons.count(("Warning", reason)) == 1, reasons
        assert "AttemptEnded" in cluster.kubectl("describe", "ptr", "fix", "-n", namespace)

        counted = [operator.ask("/metrics")[1], other.ask("/metrics")[1]]
        whose = f'agent="claude",namespace="{namespace}"'
        assert total(counted, "receipts", whose + ',verdict="native"') == 1
        assert total(counted, "tokens", whose + ',direction="input"') == 200
        assert total(counted[:1], "taskruns_by_phase", whose + ',phase="Succeeded"') == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert all(re.fullmatch(r"[0-9T:.-]+Z", line["time"]) for line in lines)


def total(texts: list[str], name: str, labels: str) -> float:
    """Return the sum of a counter over several operators. The labels may be in any order."""
    wanted = set(labels.split(","))
    found = 0.0
    for text in texts:
        pattern = rf"^perdure_operator_{name}(?:_total)?{{(.*)}} (\S+)$"
        for given, value in re.findall(pattern, text, re.MULTILINE):
            if set(given.split(",")) == wanted:
                found += float(value)
    return found
