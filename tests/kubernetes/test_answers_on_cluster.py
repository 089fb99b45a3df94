"""`kubectl perdure requests`, `approve`, `deny` and `answer` on a real API server, without an
operator: their output, what they write, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.kubernetes.requests import ANSWERS, given_answers
from perdure.rules.requests import digest
from tests.kubernetes.resource import installed
from tests.kubernetes.test_cluster_verbs import Terminal
from tests.servers.kubernetes.cluster import Cluster

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, capsys: pytest.CaptureFixture[str]) -> Terminal:
    installed(cluster)
    return Terminal(cluster, namespace, capsys)


def request(number: int = 1, command: str = "git push", **more: Any) -> dict[str, Any]:
    """Return a request as the operator writes it into the status."""
    text = json.dumps({"command": command})
    usual = {
        "number": number, "id": "bcdfghjkmnp" + "qrst"[number], "attempt": 1, "kind": "approval", "tool": "Bash", "text": text, "size": len(text),
        "sha256": digest("Bash", {"command": command}), "expires": "2126-11-21T20:00:00Z",
    }  # fmt: skip
    return {**usual, **more}


def ask(terminal: Terminal, *requests: dict[str, Any]) -> None:
    """Make the TaskRun wait for answers to these requests, as the operator does."""
    waits = {
        "type": "NeedsPerson",
        "status": "True",
        "reason": "NeedsInput",
        "message": "m",
        "lastTransitionTime": "2026-11-21T20:00:00Z",
    }
    terminal.make()
    terminal.status(
        phase="Pending",
        observedGeneration=1,
        contextVersion=1,
        attempt=1,
        conditions=[waits],
        attempts=[{"number": 1, "outcome": "needs_input"}],
        requests=list(requests),
    )


def written(terminal: Terminal) -> list[tuple[str, str, str, str]]:
    found = given_answers(terminal.get()["metadata"]["annotations"][ANSWERS])
    return [(each.request, str(each.answer), each.words, each.by) for each in found]


def test_a_person_of_the_cluster_approves(terminal: Terminal) -> None:
    """An account that may only change TaskRuns can answer. The answer records the account's name as
    the API server knows it. A second answer gets an error that names the first person, even before
    the operator has read the first answer."""
    ask(terminal, request(tool="Bash\u202e"), request(2, "make deploy"))
    cluster, namespace = terminal.cluster, terminal.namespace
    ada = cluster.account(namespace, "ada")
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [
        {
            "apiGroups": ["perdure.dev"],
            "resources": ["taskruns"],
            "verbs": ["get", "list", "patch"],
        }
    ]
    cluster.api.create(f"{rbac}/roles", {"metadata": {"name": "edit"}, "rules": rules})
    binding = {
        "metadata": {"name": "edit"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "ada", "namespace": namespace}],
    }
    cluster.api.create(f"{rbac}/rolebindings", binding)
    shown = terminal("requests", kubeconfig=ada)
    assert "command: make deploy" in shown and "\u202e" not in shown
    assert "kubectl perdure approve fix-cents, or kubectl perdure deny fix-cents" in shown
    said = terminal("approve", "fix-cents", code=2)
    assert "several open requests: 1, 2\n  kubectl perdure requests fix-cents" in said
    cluster.until(
        lambda: "has your answer: allow" in terminal("approve", "fix-cents", "--request", "2", kubeconfig=ada),
        "the role is in force",
    )  # fmt: skip
    by = f"kubernetes:system:serviceaccount:{namespace}:ada"
    assert written(terminal) == [("bcdfghjkmnps", "allow", "", by)]
    late = terminal("deny", "fix-cents", "--request", "2", code=6)
    assert f"Request 2 was answered already by {by}: allow" in late
    terminal("deny", "fix-cents", "--why", "a person pushes")
    assert [each[1:3] for each in written(terminal)] == [("allow", ""), ("deny", "a person pushes")]
    assert "has no open request. Request 2 was answered already" in terminal(
        "approve", "fix-cents", code=6
    )


def test_what_cannot_be_answered(terminal: Terminal) -> None:
    """A call that is not shown completely can only be refused, whatever shortened or changed it. An
    approval does not answer a question."""
    question = json.dumps({"questions": [{"question": "Which?", "options": [{"label": "A"}]}]})
    ask(
        terminal,
        request(1, text='{"command": "git pu', size=4000),
        request(2, text=json.dumps({"command": "ls"}), size=15),
        request(3, kind="question", tool="AskUserQuestion", text=question, size=len(question)),
    )
    assert "too long to be shown whole (4000 characters), so it can only be refused" in terminal(
        "approve", "fix-cents", "--request", "1", code=2
    )
    assert "it can only be refused\n  kubectl perdure deny" in terminal(
        "approve", "fix-cents", "--request", "2", code=2
    )
    assert "asks for a call to be allowed" in terminal(
        "answer", "fix-cents", "--request", "2", "yes", code=2
    )
    assert "Request 3 is a question\n  kubectl perdure answer fix-cents" in terminal(
        "approve", "fix-cents", "--request", "3", code=2
    )
    assert "has no request 9" in terminal("deny", "fix-cents", "--request", "9", code=5)
    assert ANSWERS not in terminal.get()["metadata"].get("annotations", {})
    terminal("answer", "fix-cents", "A")
    assert [each[1:3] for each in written(terminal)] == [("text", "A")]


def test_who_follows_is_told_that_the_agent_waits(terminal: Terminal) -> None:
    """`attach` ends with exit code 3 while a request is open. JSON has the request."""
    ask(terminal, request())
    assert "Ctrl-C leaves" in terminal("attach", "fix-cents", code=3)
    (found,) = json.loads(terminal("requests", "--json"))
    assert (found["name"], found["number"], found["answer"]) == ("fix-cents", 1, "")
    assert json.loads(terminal("show", "fix-cents", "--json"))["requests"][0]["id"] == found["id"]
    terminal.status(requests=[request(answer="deny", words="no", by="kubernetes:ada")])
    assert "no open requests" in terminal("requests")
    assert "deny by kubernetes:ada" in terminal("requests", "fix-cents")


def test_a_broken_status_shows_nothing(terminal: Terminal) -> None:
    """Anybody with that right may write a status. An entry in it that is not a valid request is not
    shown."""
    ask(terminal, request(kind="wish"))
    assert "no open requests" in terminal("requests")
    assert "has no open request" in terminal("approve", "fix-cents", code=6)
