"""`kubectl perdure` on a real API server: every verb, with what it writes, what it refuses, and its
errors if something is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.cli import main
from perdure.cli.kubernetes import requests
from perdure.kubernetes import taskruns as room
from tests.kubernetes.jobs import job, running
from tests.kubernetes.refusals import BASE
from tests.kubernetes.resource import installed, place
from tests.servers.kubernetes import faults
from tests.servers.kubernetes.api import Object
from tests.servers.kubernetes.cluster import Cluster

pytestmark = pytest.mark.kubernetes


class Terminal:
    """Runs the verbs in a namespace, and writes the status as the operator does."""

    def __init__(
        self, cluster: Cluster, namespace: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.cluster, self.namespace, self._capsys = cluster, namespace, capsys
        self.at = place(namespace)

    def __call__(self, *words: str, kubeconfig: Path | None = None, code: int = 0) -> str:
        """Run a verb and check its exit code. Return standard output, or standard error if the code
        is not 0."""
        self._capsys.readouterr()
        ended = main.main(
            [
                "--cluster",
                "-n",
                self.namespace,
                "--kubeconfig",
                str(kubeconfig or self.cluster.kubeconfig),
                *words,
            ]
        )
        said = self._capsys.readouterr()
        assert ended == code, said.out + said.err
        return said.err if code else said.out

    def make(self, name: str = "fix-cents", **spec: object) -> Object:
        body = {
            "apiVersion": "perdure.dev/v1alpha1",
            "kind": "TaskRun",
            "metadata": {"name": name},
            "spec": {**BASE, **spec},
        }
        return self.cluster.api.create(self.at, body)

    def status(self, name: str = "fix-cents", **status: object) -> None:
        self.cluster.api.patch(f"{self.at}/{name}/status", {"status": status})

    def get(self, name: str = "fix-cents") -> Object:
        return self.cluster.api.get(f"{self.at}/{name}")


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, capsys: pytest.CaptureFixture[str]) -> Terminal:
    installed(cluster)
    return Terminal(cluster, namespace, capsys)


def meanwhile(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_ls_shows_all_and_some(terminal: Terminal) -> None:
    """`ls` shows namespaces, phases and JSON. Escapes are removed from the text of a status."""
    terminal.make("one")
    terminal.make("two", task="119")
    terminal.status(
        "one", phase="Running", attempt=2, receipt="native", reason="\x1b[31mred\u202e and\nlong"
    )
    table = [line.split() for line in terminal("ls").splitlines()]
    assert table[0] == ["NAME", "TASK", "AGENT", "PHASE", "TRY", "RECEIPT", "AGE", "REASON"]
    row = next(line for line in table if line[0] == "one")
    assert row[:6] == ["one", "shop/118", "claude", "Running", "2", "native"] and row[7:] == [
        "red",
        "and",
        "long",
    ]
    assert [line.split()[0] for line in terminal("ls", "--phase", "Pending").splitlines()] == [
        "NAME",
        "two",
    ]
    found = json.loads(terminal("ls", "--json"))
    assert found["schema_version"] == 1 and {run["name"] for run in found["runs"]} == {"one", "two"}
    everywhere = [line.split()[:2] for line in terminal("ls", "-A", "--limit", "1000").splitlines()]
    assert [terminal.namespace, "one"] in everywhere and everywhere[0] == ["NAMESPACE", "NAME"]


def test_run_makes_what_was_asked(terminal: Terminal) -> None:
    """The flags of `run` become the spec, a name is generated, and Kueue's queue becomes a label.
    If the TaskRun is refused, the error is the API server's sentence."""
    name = (
        terminal("run", "--service", "shop", "--task", "118", "--queue", "agents", BASE["prompt"])
        .split()[0]
        .removeprefix("taskrun.perdure.dev/")
    )
    made = terminal.get(name)
    assert {key: made["spec"][key] for key in BASE} == BASE
    assert made["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "agents"}
    report = json.loads(terminal("run", "--name", "mine", "--service", "shop", "--json", "x"))
    assert (report["name"], report["phase"], report["attempts_allowed"]) == ("mine", "Pending", 3)
    assert "has its name already: mine" in terminal(
        "run", "--name", "mine", "--service", "shop", "x", code=6
    )
    assert "spec.workspace.checkpoints is missing" in terminal(
        "run", "--service", "shop", "--workspace", "Checkpoints", "x", code=2
    )
    assert "spec.repository: " in terminal("run", "x", code=2)


def test_an_update_takes_no_other_ones_place(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New instructions wait until the operator has read the earlier ones. If the operator does not
    read them, nothing is overwritten and the exit code is 75."""
    terminal.make()
    with monkeypatch.context() as at_once:
        at_once.setattr(requests, "PATIENCE_S", 0.0)
        assert "version 1 of fix-cents's instructions is not recorded yet" in terminal(
            "update", "fix-cents", "More", code=75
        )
    assert terminal.get()["spec"]["prompt"] == BASE["prompt"]
    recorder = meanwhile(lambda: terminal.status(contextVersion=1))
    assert "has version 2 of its instructions" in terminal("update", "fix-cents", "More")
    recorder.join()
    assert (terminal.get()["spec"]["prompt"], terminal.get()["spec"]["contextVersion"]) == (
        "More",
        2,
    )


def test_two_updates_at_once_are_both_recorded(terminal: Terminal) -> None:
    """Two updates at the same time get different versions, and the operator reads the texts of
    both."""
    terminal.make()
    terminal.status(contextVersion=1)
    seen: dict[int, str] = {}
    done = threading.Event()

    def record() -> None:
        while not done.wait(0.05):
            spec = terminal.get()["spec"]
            seen[spec["contextVersion"]] = spec["prompt"]
            terminal.status(contextVersion=spec["contextVersion"])

    def update(text: str) -> None:
        words = (
            "update",
            "fix-cents",
            text,
            "-n",
            terminal.namespace,
            "--kubeconfig",
            str(terminal.cluster.kubeconfig),
        )
        assert main.main(["--cluster", *words]) == 0

    recorder = meanwhile(record)
    writers = [meanwhile(lambda text=text: update(text)) for text in ("one", "two")]
    for each in writers:
        each.join()
    terminal.cluster.until(lambda: 3 in seen, "the newest version is read")
    done.set()
    recorder.join()
    assert {seen[2], seen[3]} == {"one", "two"}


def test_retry_stop_and_resume(terminal: Terminal) -> None:
    """A retry is a new value of the annotation, and a stop is spec.suspend. A request that makes no
    sense is a conflict that names the next step."""
    terminal.make()
    terminal.status(phase="Failed", attempt=3, contextVersion=1, observedGeneration=1)
    terminal("retry", "fix-cents")
    first = terminal.get()["metadata"]["annotations"]["perdure.dev/retry"]
    terminal("retry", "fix-cents")
    assert terminal.get()["metadata"]["annotations"]["perdure.dev/retry"] not in ("", first)
    terminal.status(phase="Running", attempt=4)
    assert "already running (attempt 4)\n  kubectl perdure logs -f fix-cents" in terminal(
        "retry", "fix-cents", code=6
    )
    assert "fix-cents is not stopped" in terminal("resume", "fix-cents", code=6)
    terminal("stop", "fix-cents")
    assert terminal.get()["spec"]["suspend"] is True
    assert "fix-cents is stopped\n  kubectl perdure resume fix-cents" in terminal(
        "retry", "fix-cents", code=6
    )
    terminal("resume", "fix-cents")
    assert terminal.get()["spec"]["suspend"] is False
    terminal.status(phase="Succeeded", observedGeneration=9)
    assert (
        'there is nothing to retry\n  kubectl perdure update fix-cents "new instructions"'
        in terminal("retry", "fix-cents", code=6)
    )
    assert "its phase is Succeeded" in terminal("stop", "fix-cents", code=6)


ATTEMPT = {
    "number": 1, "pod": "p", "node": "one", "contextVersion": 1, "started": "2026-11-21T20:00:00Z", "ended": "2026-11-21T20:01:00Z",
    "outcome": "lost", "detail": "its pod was evicted", "infrastructure": True, "sessionId": "5f0c1c52",
    "receipt": {"verdict": "native", "rung": "native", "reasons": ["same id 5f0c1c52"]},
}  # fmt: skip


def test_show_and_why_tell_attempts_conditions_and_receipts(terminal: Terminal) -> None:
    """`show` and `why` show the state of a waiting TaskRun, what is missing, and how each attempt
    ended."""
    terminal.make()
    waiting = {
        "type": "Waiting",
        "status": "True",
        "reason": "SecretMissing",
        "lastTransitionTime": "2026-11-21T20:02:00Z",
        "message": "there is no Secret claude: kubectl create secret generic claude",
    }
    terminal.status(
        phase="Queued", attempt=1, attemptsAllowed=3, contextVersion=1, sessionId="5f0c1c52", receipt="native", conditions=[waiting],
        attempts=[ATTEMPT], workspace={"claimName": "shop-118-0a", "saved": False}, usage={"inputTokens": 1200, "costUSD": "0.5"},
    )  # fmt: skip
    shown = terminal("show", "fix-cents")
    for said in (
        "attempts  1 of 3",
        "the claim shop-118-0a, not all of it saved",
        "1.2k tokens in",
        "$0.50",
        "Waiting: there is no Secret claude",
    ):
        assert said in shown
    assert "attempt 1  lost (its pod was evicted) on one  receipt native  (not counted)" in shown
    why = terminal("why", "fix-cents")
    for said in (
        "SecretMissing, since",
        "kubectl create secret",
        "p on one",
        "lost: its pod was evicted",
        "- same id 5f0c1c52",
    ):
        assert said in why
    report = json.loads(terminal("show", "fix-cents", "--json"))
    assert (report["workspace"]["claim"], report["attempts"][0]["reasons"]) == (
        "shop-118-0a",
        ["same id 5f0c1c52"],
    )
    assert set(json.loads(terminal("why", "fix-cents", "--json"))) < set(report)


def test_logs_follow_attempt_by_attempt(terminal: Terminal) -> None:
    """The log of a running pod is followed to the TaskRun's end, without control characters. If a
    pod is gone, the error says that its log is too."""
    cluster, namespace = terminal.cluster, terminal.namespace
    script = (
        "trap 'echo last; exit 0' TERM; printf 'first \\033[31mred\\n'; while :; do sleep 0.1; done"
    )
    job(cluster, namespace, "attempt-2", script, container={"name": "perdure"})
    pod = running(cluster, namespace, "attempt-2", "first")["metadata"]["name"]
    terminal.make()
    gone, at_work = {"number": 1, "pod": "gone", "outcome": "lost"}, {"number": 2, "pod": pod}
    terminal.status(
        phase="Running", attempt=2, contextVersion=1, observedGeneration=1, attempts=[gone, at_work]
    )
    assert terminal("logs", "fix-cents").splitlines()[:1] == ["first red"]
    over = meanwhile(lambda: _end(terminal, pod))
    assert terminal("logs", "-f", "--attempt", "2", "fix-cents").splitlines() == [
        "first red",
        "last",
    ]
    over.join()
    assert "has no attempt 7" in terminal("logs", "fix-cents", "--attempt", "7", code=5)


def _end(terminal: Terminal, pod: str, name: str = "fix-cents") -> None:
    """End the pod and write the status as the operator does, so that the TaskRun has ended."""
    found = terminal.cluster.api.get(f"/api/v1/namespaces/{terminal.namespace}/pods/{pod}")
    faults.processes(terminal.cluster, found)[0].kill(signal.SIGTERM)
    path = f"/api/v1/namespaces/{terminal.namespace}/pods/{pod}"
    terminal.cluster.until(
        lambda: terminal.cluster.api.get(path)["status"]["phase"] == "Succeeded",
        "the pod has ended",
    )
    number = terminal.get(name)["status"]["attempt"]
    terminal.status(
        name, phase="Succeeded", attempts=[{"number": number, "pod": pod, "outcome": "succeeded"}]
    )


ENDS = [
    ("Succeeded", "succeeded", False, 0),
    ("Failed", "failed", False, 1),
    ("Failed", "continuity_lost", True, 3),
    ("Failed", "needs_input", True, 3),
    ("Failed", "auth_failed", True, 4),
    ("Suspended", "cancelled", False, 130),
]


@pytest.mark.parametrize(("phase", "outcome", "asks", "code"), ENDS)
def test_following_ends_with_the_runs_own_code(
    terminal: Terminal, phase: str, outcome: str, asks: bool, code: int
) -> None:
    """`run --follow` works in a script like `perdure run`: its exit code is that of the task."""
    needs = {
        "type": "NeedsPerson",
        "status": str(asks),
        "reason": "Asks",
        "message": "m",
        "lastTransitionTime": "2026-11-21T20:00:00Z",
    }
    ended = {
        "phase": phase,
        "observedGeneration": 1,
        "contextVersion": 1,
        "attempt": 1,
        "conditions": [needs],
        "attempts": [{"number": 1, "outcome": outcome}],
    }
    path = f"{terminal.at}/followed"
    operator = meanwhile(
        lambda: (
            terminal.cluster.until(lambda: terminal.cluster.api.find(path), "it is made")
            and terminal.status("followed", **ended)
        )
    )
    terminal("run", "--name", "followed", "--service", "shop", "--follow", "x", code=code)
    operator.join()


def test_a_retry_is_followed_from_its_own_attempt(terminal: Terminal) -> None:
    """The end of the previous attempt does not count as the end of the retry, and its log is not
    printed again."""
    terminal.make()
    terminal.status(
        phase="Failed",
        attempt=1,
        contextVersion=1,
        observedGeneration=1,
        attempts=[{"number": 1, "pod": "p", "outcome": "failed"}],
    )

    def operator() -> None:
        wish = terminal.cluster.until(
            lambda: terminal.get()["metadata"].get("annotations", {}).get("perdure.dev/retry"),
            "it is asked for",
        )
        attempts = [
            {"number": 1, "pod": "p", "outcome": "failed"},
            {"number": 2, "outcome": "succeeded"},
        ]
        terminal.status(phase="Succeeded", attempt=2, retried=wish, attempts=attempts)

    other = meanwhile(operator)
    assert "gets one more attempt" in terminal("retry", "fix-cents", "--follow")
    other.join()


def test_following_outlives_the_api_server(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    """An API server that is killed and restarted breaks the stream, but following continues: each
    line is printed once, and the exit code is the run's."""
    cluster, namespace = terminal.cluster, terminal.namespace
    script = "trap 'echo last; exit 0' TERM; echo first; while :; do sleep 0.1; done"
    job(cluster, namespace, "attempt-1", script, container={"name": "perdure"})
    pod = running(cluster, namespace, "attempt-1", "first")["metadata"]["name"]
    path = f"{terminal.at}/followed"

    words = (
        "run",
        "--name",
        "followed",
        "--service",
        "shop",
        "--follow",
        "x",
        "--kubeconfig",
        str(cluster.kubeconfig),
    )
    codes: list[int] = []
    follower = meanwhile(lambda: codes.append(main.main(["--cluster", "-n", namespace, *words])))
    cluster.until(lambda: cluster.api.find(path), "it is made")
    at_work = [{"number": 1, "pod": pod}]
    terminal.status(
        "followed",
        phase="Running",
        observedGeneration=1,
        contextVersion=1,
        attempt=1,
        attempts=at_work,
    )
    cluster.restart()  # this thread: the new server ends with the thread that starts it
    _end(terminal, pod, "followed")
    follower.join()
    assert codes == [0]
    said = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("perdure: ")
    ]
    assert said == ["first", "last"]


LOGIN = """#!/bin/sh
case $KUBERNETES_EXEC_INFO in *client.authentication.k8s.io/v1\\"*) ;; *) exit 1 ;; esac
printf '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}' "$1"
"""


def test_a_login_program_gives_the_token(terminal: Terminal, tmp_path: Path) -> None:
    """The kubeconfig of a cloud names a program that prints a token, in version 1 of its protocol.
    The verbs use that token."""
    program = tmp_path / "login"
    program.write_text(LOGIN)
    program.chmod(0o755)
    config = json.loads(terminal.cluster.kubeconfig.read_text())
    login = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(program),
        "args": [terminal.cluster.access.token],
    }
    config["users"][0]["user"] = {"exec": login}
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    terminal.make()
    assert "fix-cents" in terminal("ls", kubeconfig=path)


def test_what_is_missing_is_one_sentence(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing TaskRun, right, token or resource gives one sentence each, with its exit code and
    the next command."""
    cluster, namespace = terminal.cluster, terminal.namespace
    assert (
        f"there is no TaskRun 'nope' in the namespace {namespace}\n  kubectl perdure ls -n "
        f"{namespace}" in terminal("show", "nope", code=5)
    )
    nobody = cluster.account(namespace, "nobody")
    assert "you may not do that" in terminal("ls", kubeconfig=nobody, code=7)
    stranger = tmp_path / "stranger"
    stranger.write_text(cluster.kubeconfig.read_text().replace(cluster.access.token, "stranger"))
    assert "does not accept your credentials" in terminal("ls", kubeconfig=stranger, code=7)
    monkeypatch.setattr(room, "VERSION", "v9")
    assert "has no resource taskruns.perdure.dev\n  kubectl apply" in terminal("ls", code=5)


def test_kubectl_finds_the_plugin(terminal: Terminal) -> None:
    """`kubectl perdure` is the same program, with kubectl's own flags."""
    terminal.make()
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(terminal.cluster.top),
    }
    words = (
        "kubectl",
        "perdure",
        "ls",
        "-n",
        terminal.namespace,
        "--kubeconfig",
        str(terminal.cluster.kubeconfig),
    )
    ran = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[1].split()[0] == "fix-cents"
