"""The parts of `perdure --cluster` that need no cluster: how flags become a spec, how TaskRuns are
shown, and the errors without a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.cli import main
from perdure.cli.kubernetes import requests, verbs
from perdure.errors import UsageError
from perdure.kubernetes import view
from perdure.kubernetes.view import TaskRunOfList, TaskRunReport
from tests.kubernetes.refusals import BASE
from tests.kubernetes.resource import places, schema


def words(*given: str) -> dict[str, Any]:
    return requests.spec_of(verbs.parser_of("run").parse_intermixed_args(given))


def test_flags_become_a_spec() -> None:
    """Each flag sets its field. The API server fills in the others."""
    assert words("--service", "shop", "--task", "118", BASE["prompt"]) == BASE
    whole = words(
        *(
            "--agent",
            "codex",
            "--model",
            "m",
            "--permissions",
            "read",
            "--agent-arg=-v",
            "--env",
            "A=b=c",
            "--credentials",
            "c",
            "x",
        ),
        *(
            "--session",
            "s",
            "--session-of",
            "o",
            "--image",
            "i",
            "--label",
            "team=billing",
            "--service",
            "a",
            "--task",
            "t",
        ),
        *("--repo", "https://h/r", "--base", "main", "--branch", "b", "--repo-credentials", "g"),
        *(
            "--workspace",
            "Shared",
            "--claim",
            "l",
            "--checkpoints",
            "s3://b",
            "--checkpoints-credentials",
            "k",
            "--size",
            "1Gi",
        ),
        *(
            "--attempts",
            "5",
            "--timeout",
            "2h",
            "--stall",
            "0",
            "--budget-usd",
            "2.5",
            "--continuity",
            "strict",
            "--when-full",
            "stop",
        ),
        *("--verify", "make", "--verify-rounds", "0", "--verify-timeout", "90s"),
    )
    assert whole == {
        "prompt": "x", "service": "a", "task": "t", "agent": "codex", "model": "m", "permissions": "Read", "agentArgs": ["-v"],
        "env": [{"name": "A", "value": "b=c"}], "credentialsSecretRef": {"name": "c"},
        "repository": {"url": "https://h/r", "base": "main", "branch": "b", "credentialsSecretRef": {"name": "g"}},
        "resume": {"mode": "Session", "sessionId": "s", "from": "o"},
        "workspace": {"mode": "Shared", "claimName": "l", "checkpoints": "s3://b", "checkpointsSecretRef": {"name": "k"}, "size": "1Gi"},
        "policy": {
            "attempts": 5, "timeoutSeconds": 7200, "stallSeconds": 0, "budgetUSD": "2.5", "continuity": "Strict", "whenFull": "Stop",
            "verify": "make", "verifyRounds": 0, "verifyTimeoutSeconds": 90,
        },
        "labels": {"team": "billing"}, "pod": {"image": "i"},
    }  # fmt: skip
    there = {place for place, _ in places(schema())}
    assert {f"spec.{place}" for place in _leaves(whole)} <= there


def _leaves(found: dict[str, Any], at: str = "") -> list[str]:
    leaves = []
    for name, value in found.items():
        leaves += (
            _leaves(value, f"{at}{name}.")
            if isinstance(value, dict) and name != "labels"
            else [f"{at}{name}"]
        )
    return leaves


HOSTILE: list[Any] = [
    {},
    {"metadata": 1, "spec": [], "status": "x"},
    {"status": {"attempts": [1, {}], "conditions": [None], "usage": []}},
]


@pytest.mark.parametrize("body", HOSTILE)
def test_a_taskrun_of_any_shape_is_shown(body: Any) -> None:
    """A status of any content is shown. A value of the wrong type counts as missing."""
    report = view.report_of(body)
    assert (report.phase, report.attempt, report.context_version) == ("Pending", 0, 0)
    assert view.why_of(report).attempts == report.attempts


def test_a_report_begins_with_the_fields_of_a_row() -> None:
    """In JSON, `show` prints the fields of `ls` first, in the same order."""
    row = TaskRunOfList.__struct_fields__
    assert TaskRunReport.__struct_fields__[: len(row) + 1] == ("schema_version", *row)


def test_over_is_said_of_the_spec_as_it_is() -> None:
    """A phase that was written before the newest change, or before new instructions were read, does
    not count as an end."""
    body = {
        "metadata": {"generation": 3},
        "spec": {"contextVersion": 2},
        "status": {"phase": "Succeeded", "observedGeneration": 3, "contextVersion": 2},
    }
    assert view.is_over(body)
    assert not view.is_over({**body, "metadata": {"generation": 4}})
    assert not view.is_over({**body, "spec": {"contextVersion": 3}})
    assert not view.is_over({**body, "status": {**body["status"], "phase": "Queued"}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no cluster is named"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        ("root:x:0:0:root", "cannot be read"),
        (json.dumps({"clusters": [], "contexts": [], "users": []}), "no cluster is named"),
        (
            '{"clusters": [{"name": "c", "cluster": {"server": "x"}}], "contexts": [{"name": "c", '
            '"context": {"cluster": "c"}}],'
            '"current-context": "c"}',
            "has no user",
        ),
    ],
)
def test_without_a_cluster_one_sentence_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    """A kubeconfig that is missing, invalid or without a user gives exit code 2 and a next step."""
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    assert main.main(["--cluster", "--kubeconfig", str(path), "ls"]) == 2
    problem, hint = capsys.readouterr().err.splitlines()
    assert said in problem and hint.startswith("  ")


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If no server listens, there is one sentence with the address, and exit code 7."""
    path = tmp_path / "config"
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "c", "user": {"token": "t"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                "current-context": "c",
            }
        )
    )
    assert main.main(["--cluster", "ls", "--kubeconfig", str(path)]) == 7
    assert "the API server http://127.0.0.1:1 does not answer" in capsys.readouterr().err


def test_verbs_and_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    """The overview lists every verb, each verb has its help, and an unknown verb is refused."""
    assert main.main(["--cluster", "--help"]) == 0
    out = capsys.readouterr().out
    for verb in verbs.VERBS:
        assert f"\n  {verb} " in out
        assert "--namespace" in verbs.parser_of(verb).format_help()
    assert main.main(["--cluster", "rm", "x"]) == 2
    assert "there is no verb 'rm' for a cluster" in capsys.readouterr().err


def test_a_variable_without_a_value_is_refused() -> None:
    """`--env NAME` without a value would pass on the caller's variable. A pod does not have that
    variable, so the flag is refused."""
    with pytest.raises(
        UsageError, match="--env HOME has no value, and a pod does not see your own variables"
    ):
        words("--service", "a", "--env", "HOME", "x")


def test_the_verbs_need_no_part_of_the_operator() -> None:
    """`kubectl perdure` works with only the extra `kubectl`, which includes neither kopf nor the
    library of Prometheus."""
    program = (
        "import sys\n"
        "sys.modules |= {'kopf': None, 'prometheus_client': None}\n"
        "from perdure.cli.kubernetes import verbs\n"
        "from perdure.kubernetes import taskruns\n"
        "for verb in verbs.VERBS:\n"
        "    verbs._part(verb, 'verb')\n"
        "taskruns._kind('batch', 'Job', 'jobs')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
