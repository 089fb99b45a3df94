"""The TaskRun resource on a real API server: its refusals, valid objects, allowed changes, and
kubectl's columns."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import msgspec
import pytest
import yaml

from perdure.kubernetes.objects import camel_word
from perdure.kubernetes.spec import SpecSource
from perdure.kubernetes.status import (
    AttemptStatus,
    ReceiptSummary,
    RequestStatus,
    StatusCondition,
    TaskRunStatus,
    UsageStatus,
    WorkspaceStatus,
    WorkStatus,
)
from perdure.model import TaskSpec
from perdure.model.requests import AnswerKind, RequestKind
from tests.kubernetes.refusals import BASE, CHANGES, REFUSED, TAKEN, laid_over
from tests.kubernetes.resource import TOP, installed, place, schema
from tests.servers.kubernetes.api import Object, Refused
from tests.servers.kubernetes.cluster import Cluster

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def there(cluster: Cluster, namespace: str) -> str:
    """Return a namespace in a cluster that has the resource."""
    installed(cluster)
    return namespace


def asked(cluster: Cluster, namespace: str, name: str, spec: Object) -> Object:
    body = {
        "apiVersion": "perdure.dev/v1alpha1",
        "kind": "TaskRun",
        "metadata": {"name": name},
        "spec": spec,
    }
    return cluster.api.create(place(namespace), body)


def refusal(cluster: Cluster, namespace: str, name: str, spec: Object) -> str:
    try:
        asked(cluster, namespace, name, spec)
    except Refused as error:
        return error.message
    return ""


def test_what_is_wrong_is_refused_with_the_fields_name(cluster: Cluster, there: str) -> None:
    """Each rule and each limit refuses with a sentence that names the field. Nothing is stored."""
    said = {
        what: refusal(cluster, there, "wrong", laid_over(BASE, change))
        for what, (change, _) in REFUSED.items()
    }
    assert {
        what: message for what, message in said.items() if REFUSED[what][1] not in message
    } == {}
    assert cluster.api.items(place(there)) == []


def test_what_is_right_is_taken(cluster: Cluster, there: str) -> None:
    """Every intended use of the fields is accepted."""
    said = {
        what: refusal(cluster, there, f"right-{number}", laid_over(BASE, change))
        for number, (what, change) in enumerate(TAKEN.items())
    }
    assert {what: message for what, message in said.items() if message} == {}


def test_what_may_change_and_what_may_not(cluster: Cluster, there: str) -> None:
    """A task's identity cannot change. Instructions change with their version, and fields about the
    next attempt may always change."""
    wrong = {}
    for number, (what, (before, change, refused)) in enumerate(CHANGES.items()):
        asked(cluster, there, f"change-{number}", laid_over(BASE, before))
        try:
            cluster.api.patch(f"{place(there)}/change-{number}", {"spec": change})
            said = ""
        except Refused as error:
            said = error.message
        if (refused not in said) if refused else said:
            wrong[what] = said
    assert wrong == {}


@pytest.mark.parametrize("name", ["a.b", "x" * 64])
def test_a_name_that_no_run_could_have_is_refused(cluster: Cluster, there: str, name: str) -> None:
    """Names become labels and a run's name. An impossible one is refused at once."""
    assert "metadata.name: at most 63 lower-case letters, digits and hyphens" in refusal(
        cluster, there, name, BASE
    )


def test_a_taskrun_from_before_can_be_changed(cluster: Cluster, there: str) -> None:
    """A TaskRun that an earlier definition accepted, with a float and lower-case words, can be
    updated under this definition. A new TaskRun like it is refused."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/taskruns.perdure.dev"
    now = cluster.api.get(path)["spec"]["versions"]
    old = copy.deepcopy(now)
    spec = old[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["permissions"] |= {"enum": ["read", "edit", "full"], "default": "edit"}
    spec["policy"]["properties"]["budgetUSD"] = {"type": "number"}
    before = {**BASE, "permissions": "full", "policy": {"budgetUSD": 2.5}}

    numbers = itertools.count()

    def is_taken() -> bool:
        return not refusal(cluster, there, f"one-{next(numbers)}", before)

    cluster.api.patch(path, {"spec": {"versions": old}})
    try:
        cluster.until(is_taken, "the earlier definition is in force")
        asked(cluster, there, "before", before)
    finally:
        cluster.api.patch(path, {"spec": {"versions": now}})
    cluster.until(lambda: not is_taken(), "the definition is in force")
    changed = cluster.api.patch(
        f"{place(there)}/before", {"spec": {"prompt": "More", "contextVersion": 2}}
    )["spec"]
    assert (changed["permissions"], changed["policy"]["budgetUSD"]) == ("full", 2.5)


def test_defaults_are_written_down(cluster: Cluster, there: str) -> None:
    """A TaskRun that is read back shows the values that `perdure run` would use."""
    spec = asked(cluster, there, "least", BASE)["spec"]
    task, policy = TaskSpec(prompt=BASE["prompt"]), spec["policy"]
    assert (spec["agent"], spec["permissions"], policy["continuity"]) == (
        task.agent,
        camel_word(task.permissions),
        camel_word(task.continuity),
    )
    limits = (
        policy["attempts"],
        policy["timeoutSeconds"],
        policy["stallSeconds"],
        policy["budgetUSD"],
        policy["verifyRounds"],
    )
    assert limits == (
        task.attempts,
        task.timeout_s,
        task.stall_s,
        task.budget_usd,
        task.verify_rounds,
    )
    assert spec["contextVersion"] == 1 and spec["suspend"] is False
    assert spec["workspace"] == {"mode": "Claim", "reclaim": "Keep"}
    assert spec["resume"] == {"mode": "Auto"}


def test_kubectl_shows_columns_and_selects_by_field(cluster: Cluster, there: str) -> None:
    """`kubectl get ptr` shows task, agent, phase, attempt and receipt; `-o wide` also session and
    reason. Field selectors work."""
    for number in (1, 2):
        asked(cluster, there, f"run-{number}", {**BASE, "task": f"11{number}"})
    status = {
        "phase": "Running",
        "attempt": 2,
        "receipt": "native",
        "sessionId": "5f0c1c52",
        "reason": "attempt 2 works",
        "work": "done",
    }
    cluster.api.patch(f"{place(there)}/run-1/status", {"status": status})
    head, first, _ = (
        line.split() for line in cluster.kubectl("get", "ptr", "-n", there).splitlines()
    )
    assert head == ["NAME", "TASK", "AGENT", "PHASE", "ATTEMPT", "RECEIPT", "WORK", "AGE"]
    assert first[:7] == ["run-1", "111", "claude", "Running", "2", "native", "done"]
    wide = cluster.kubectl("get", "perdure", "-n", there, "-o", "wide").splitlines()
    assert wide[0].split()[8:] == ["SESSION", "REASON"] and wide[1].endswith(
        "5f0c1c52   attempt 2 works"
    )
    for field, names in {
        "status.phase=Running": ["run-1"],
        "spec.task=112": ["run-2"],
        "spec.service=shop,spec.agent=claude": ["run-1", "run-2"],
    }.items():
        found = cluster.kubectl(
            "get", "taskruns.perdure.dev", "-n", there, "--field-selector", field, "-o", "name"
        ).split()
        assert found == [f"taskrun.perdure.dev/{name}" for name in names], field


def test_status_has_its_own_door(cluster: Cluster, there: str) -> None:
    """A writer of the status cannot change the spec, and a writer of the spec cannot change the
    status. The status has a schema, too."""
    made = asked(cluster, there, "two-doors", BASE)
    at = f"{place(there)}/two-doors"
    written = cluster.api.patch(
        f"{at}/status", {"spec": {"suspend": True}, "status": {"phase": "Running"}}
    )
    assert (written["spec"]["suspend"], written["status"]["phase"]) == (False, "Running")
    assert written["metadata"]["generation"] == made["metadata"]["generation"]
    assert cluster.api.patch(at, {"status": {"phase": "Failed"}})["status"]["phase"] == "Running"
    for wrong, field in (
        ({"phase": "Odd"}, "status.phase"),
        ({"attempts": [{"number": 0}]}, "status.attempts[0].number"),
    ):
        with pytest.raises(Refused, match=field.replace("[", r"\[")):
            cluster.api.patch(f"{at}/status", {"status": wrong})


def test_what_the_operator_writes_fits_the_schema(cluster: Cluster, there: str) -> None:
    """The API server keeps every field of the status that the operator writes."""
    record = AttemptStatus(
        number=1, job="j", job_uid="u", pod="p", node="n", context_version=2, started="2026-11-21T20:00:00.000Z",
        ended="2026-11-21T20:01:00.000Z", outcome="succeeded", detail="d", infrastructure=True, session_id="s",
        receipt=ReceiptSummary(verdict="native", rung="native", reasons=("same id",)),
        usage=UsageStatus(input_tokens=1, output_tokens=2, cost="0.5"), exit_code=7,
        work=WorkStatus(verdict="done", reason="r", files=1, commits=1, pushed=True, denied=1, question="q"),
    )  # fmt: skip
    request = RequestStatus(
        number=1, id="a1b2", attempt=1, kind=RequestKind.APPROVAL, tool="Bash", text="{}", size=2, sha256="0" * 64,
        expires="2026-11-22T20:00:00.000Z", answer=AnswerKind.ALLOW, words="w", by="b", answered="2026-11-21T20:02:00.000Z",
    )  # fmt: skip
    whole = TaskRunStatus(
        phase="Running", observed_generation=1, context_version=1, attempt=1, attempts_allowed=3, used_before=1,
        run_after="2026-11-21T20:02:00.000Z", reason="r", session_id="s", receipt="native", retried="x",
        work="done", completion_time="2026-11-21T20:03:00.000Z",
        workspace=WorkspaceStatus(claim_name="c", path="/data/x", branch="b", commit="0" * 40, checkpoints="s3://b", saved=True),
        usage=UsageStatus(input_tokens=1, output_tokens=2, cost="0.5"),
        conditions=(StatusCondition(type="Waiting", status="True", observed_generation=1, reason="Quota", message="m", last_transition_time="2026-11-21T20:00:00Z"),),
        attempts=(record,), requests=(request,), contexts=1, instructions_from=(SpecSource(version=1, name="s", key="k"),),
    )  # fmt: skip
    asked(cluster, there, "whole", BASE)
    status: Any = msgspec.json.decode(msgspec.json.encode(whole))
    assert all(_without_defaults(each) for each in (whole, record, request)), (
        "a field that this test leaves at its default proves nothing"
    )
    assert cluster.api.patch(f"{place(there)}/whole/status", {"status": status})["status"] == status


def _without_defaults(struct: Any) -> bool:
    fields = msgspec.structs.fields(type(struct))
    return all(
        getattr(struct, field.name) != field.default
        for field in fields
        if field.default is not msgspec.NODEFAULT
    )


def test_the_examples_are_taken(cluster: Cluster, there: str) -> None:
    """The API server accepts the examples unchanged."""
    for path in sorted((TOP / "packaging" / "kubernetes" / "examples").glob("*.yaml")):
        said = cluster.kubectl(
            "apply",
            "-n",
            there,
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            str(path),
        )
        assert "serverside-applied" in said, path.name


def test_the_step_of_argo_makes_a_taskrun(cluster: Cluster, there: str) -> None:
    """The TaskRun of the example's workflow is accepted, and ends in a phase that the workflow's
    conditions name."""
    path = TOP / "packaging" / "kubernetes" / "examples" / "argo" / "workflow.yaml"
    step = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["templates"][0]["resource"]
    manifest = step["manifest"].replace("{{workflow.parameters.issue}}", "118")
    assert "taskrun.perdure.dev/shop-118-" in cluster.kubectl(
        "create", "-n", there, "--validate=strict", "-f", "-", stdin=manifest
    )
    phases = schema()["properties"]["status"]["properties"]["phase"]["enum"]
    named = [
        phase
        for phase in phases
        if phase in f"{step['successCondition']} {step['failureCondition']}"
    ]
    assert named == ["Succeeded", "Failed", "Cancelled"]


def test_the_schema_is_structural(cluster: Cluster, there: str) -> None:
    """The API server accepts the resource without a warning, and knows its short name and category."""
    found = json.loads(cluster.kubectl("get", "crd", "taskruns.perdure.dev", "-o", "json"))
    conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert found["status"]["acceptedNames"]["shortNames"] == ["ptr"]
