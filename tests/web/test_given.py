"""Actions over the network that were once possible only in a terminal: plans, session records, and
a reset by name."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.model.forge.deliveries import DeliveryState, Forge
from tests.finding import first_file
from tests.forges import payloads
from tests.journeys.stage import Stage
from tests.web.serving import PATIENCE_S, Serving

NAME = "gogits/hello-world"
CONFIG = """
permissions = "full"
[webhooks.tea]
forge = "gitea"
secret_file = "{{home}}/secret"
[agents.dev]
agent = "claude"
login = "dev-bot"
authors = ["unknwon"]
labels = ["agent"]
clone = "{top}/{{{{repository}}}}"
"""
OVER = ("succeeded", "failed", "stopped")
Make = Callable[[str], tuple[Stage, Serving]]


@pytest.fixture
def machine() -> Iterator[Make]:
    """Make a stage on which Claude Code follows a script, with a server that knows its repositories
    by the names of a forge."""
    directory = Path(tempfile.mkdtemp(prefix="pg"))
    made: list[tuple[Stage, Serving]] = []

    def make(script: str) -> tuple[Stage, Serving]:
        one = Stage(directory, "claude", Rehearsal(script).start())
        shutil.copytree(one.repo, directory / NAME)
        made.append((one, Serving(one.home, CONFIG.format(top=directory), **one.environ)))
        return made[-1]

    yield make
    for one, serving in made:
        serving.kill()
        one.close()
        one.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def test_a_reset_by_the_names_of_the_forge(machine: Make) -> None:
    """For a reset, a repository, an issue and an agent can be given by the forge's name, by number
    and by rule, over the network and in a terminal."""
    one, serving = machine("say Done.")
    serving.start("--jobs", "1")
    token = serving.token("admin")
    body = payloads.derived("gitea", "issues_opened", payloads.gitea_labels)
    assert (
        serving.send("/webhooks/tea", body, payloads.headers(Forge.GITEA, "issue_label", body))[0]
        == 202
    )
    serving.until(
        lambda: [each.state for each in serving.inbox()] == [DeliveryState.HANDLED],
        "the label became a task",
    )
    serving.until(
        lambda: json.loads(one.perdure("ls", "--json").out)["runs"][0]["state"] == "succeeded",
        "it is done",
    )
    (run,) = json.loads(one.perdure("ls", "--json").out)["runs"]
    for said in ({"agent": "dev"}, {"agent": "claude"}, {}):
        status, found = serving.ask(
            "POST", "/api/v1/admin/reset", token, {"repository": NAME, "issue": 1, **said}
        )
        assert (status, found.get("runs")) == (200, [run["name"]]), found
    for wrong in (
        {"issue": 2},
        {"issue": 1, "agent": "qa"},
        {"issue": 1, "repository": "other/hello-world"},
    ):
        assert (
            serving.ask("POST", "/api/v1/admin/reset", token, {"repository": NAME, **wrong})[0]
            == 404
        )
    done = one.perdure(
        "reset", "--repo", NAME, "--issue", "1", "--agent", "dev", "--dry-run", "--json"
    )
    assert (done.code, done.json["runs"]) == (0, [run["name"]]), done.err


def test_session_records_over_the_network(machine: Make) -> None:
    """A client that may dispatch can create a record, restart its lifetime and close it. Invalid
    requests are refused with a sentence."""
    _, serving = machine("say Done.")
    serving.start("--jobs", "0")
    token, reader = serving.token("dispatch"), serving.token("read")
    asked = {"agent": "claude", "scope": "docs/weekly", "lifetime": "2h"}
    assert serving.ask("POST", "/api/v1/sessions", reader, asked)[0] == 403
    status, made = serving.ask("POST", "/api/v1/sessions", token, asked)
    assert (
        status == 201
        and made["scope"] == "docs/weekly"
        and made["expires"] - made["updated"] == 7_200_000
    )
    assert serving.ask("POST", "/api/v1/sessions", token, asked)[0] == 409
    assert serving.ask("POST", "/api/v1/sessions", token, {**asked, "agent": "nobody"})[0] == 422
    path = f"/api/v1/sessions/{made['id']}"
    assert serving.ask("POST", f"{path}/extend", reader, {})[0] == 403
    status, longer = serving.ask("POST", f"{path}/extend", token, {"lifetime": "0"})
    assert (status, longer["expires"], longer["id"]) == (200, None, made["id"])
    assert serving.ask("POST", f"{path}/close", reader, {})[0] == 403
    status, closed = serving.ask("POST", f"{path}/close", token, {"cause": "a new quarter"})
    assert (status, closed["state"], closed["cause"]) == (200, "retired", "a new quarter")
    status, refused = serving.ask("POST", f"{path}/close", token, {})
    assert status == 409 and "retired" in refused["detail"]
    assert serving.ask("POST", "/api/v1/sessions/nothing-here/extend", token, {})[0] == 404


def test_session_records_in_a_terminal(machine: Make) -> None:
    """`sessions create` makes the record that the first run of its scope starts. `extend` and
    `close` accept the scope, the id or the run."""
    one, _ = machine("say Done.\n---\nsay Again.")
    made = one.perdure(
        "sessions", "create", "weekly", "--agent", "claude", "--lifetime", "7d", "--json"
    )
    assert made.code == 0, made.err
    assert one.perdure("sessions", "create", "weekly", "--agent", "claude").code == 6
    done = one.perdure("run", "--agent", "claude", "--scope", "weekly", "--name", "task", "Say it.")
    assert done.code == 0, done.err
    (attempt,) = one.show()["attempts"]
    assert attempt["session_id"] == made.json["id"]
    for ref in ("weekly", made.json["id"], "task"):
        assert (
            one.perdure("sessions", "extend", ref, "--lifetime", "1h", "--json").json["lifetime_s"]
            == 3600
        )
    closed = one.perdure("sessions", "close", "weekly", "--cause", "enough")
    assert closed.code == 0 and "retired; enough" in closed.out, closed.err
    refused = one.perdure("sessions", "extend", made.json["id"])
    assert refused.code == 6 and "is retired: enough" in refused.err
    assert one.perdure("sessions", "extend", "weekly", "--lifetime", "soon").code == 2


def plan(one: Stage, **change: Any) -> dict[str, Any]:
    tasks = [
        {"name": "first", "agent": "claude", "prompt": "Write one.txt.", "permissions": "full"},
        {
            "name": "second",
            "agent": "claude",
            "prompt": "Write two.txt.",
            "needs": ["first"],
            "permissions": "full",
        },
    ]
    return {"plan": {"name": "pair", "tasks": tasks} | change, "repo": str(one.repo)}


def test_a_plan_over_the_network(machine: Make) -> None:
    """A plan that is sent over the network is checked, begun once even if it is sent several times,
    and completed by the pool, although the server is killed in between."""
    one, serving = machine(
        "run echo one > one.txt\n---\nsay One.\n---\nrun echo two > two.txt; sleep 4\n---\nsay "
        "Two.\n"
    )
    serving.start("--jobs", "1")
    token, lesser = serving.token("admin"), serving.token("dispatch")
    assert serving.ask("POST", "/api/v1/plans", serving.token("read"), plan(one))[0] == 403
    status, said = serving.ask("POST", "/api/v1/plans", lesser, plan(one))
    assert status == 403 and "repo, unless it is an https address" in said["detail"]
    status, said = serving.ask(
        "POST",
        "/api/v1/plans",
        token,
        plan(one, tasks=[{"name": "a", "prompt": "x", "needs": ["b"]}], speed=9),
    )
    assert status == 422 and any("speed" in problem for problem in said["problems"]), said
    assert serving.ask("GET", "/api/v1/plans", token)[1]["plans"] == []
    made = [serving.ask("POST", "/api/v1/plans", token, plan(one)) for _ in range(2)]
    assert [status for status, _ in made] == [201, 201] and len(
        {said["name"] for _, said in made}
    ) == 1
    assert {said["state"] for _, said in made} <= {"queued", "running"}
    status, said = serving.ask("POST", "/api/v1/plans", token, plan(one, verify="true"))
    assert status == 409 and "Another plan has the name pair" in said["detail"]

    def tasks() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = serving.ask("GET", "/api/v1/plans/pair", token)[1]["tasks"]
        return found

    serving.until(lambda: first_file(one.home, "two.txt"), "the second task is at work")
    serving.kill()
    serving.start("--jobs", "1")
    serving.until(
        lambda: serving.ask("GET", "/api/v1/plans/pair", token)[1]["state"] == "succeeded",
        "the plan is done",
    )
    first, second = tasks()
    assert first["session_id"] == second["session_id"] and second["verdict"] == "native"
    assert len(json.loads(one.perdure("ls", "--json").out)["runs"]) == 2
    assert serving.ask("POST", "/api/v1/plans", token, plan(one))[1]["state"] == "succeeded"
    assert serving.stop() == 0


def test_a_plan_is_stopped_and_goes_on(machine: Make) -> None:
    """When a plan is stopped, its running task ends and no other begins, not even after a restart.
    A retry continues the same conversation. A task that did not fail is not retried."""
    one, serving = machine(
        "run echo one > one.txt; test -e go.txt || sleep 98\n---\nsay One.\n---\n"
        "run echo two > two.txt\n---\nsay Two.\n---\nsay Three.\n"
    )
    serving.start("--jobs", "1")
    token, reader = serving.token("admin"), serving.token("read")
    other = {"name": "third", "agent": "claude", "prompt": "Say it.", "permissions": "full"}
    asked = plan(one)
    asked["plan"]["tasks"].append(other)
    assert serving.ask("POST", "/api/v1/plans", token, asked)[0] == 201

    def state() -> str:
        return str(serving.ask("GET", "/api/v1/plans/pair", token)[1]["state"])

    def tasks() -> list[str]:
        found = serving.ask("GET", "/api/v1/plans/pair", token)[1]["tasks"]
        return [each["state"] for each in found]

    written = serving.until(lambda: first_file(one.home, "one.txt"), "it is at work")
    assert serving.ask("POST", "/api/v1/plans/pair/stop", reader, {})[0] == 403
    assert serving.ask("POST", "/api/v1/plans/none/stop", token, {})[0] == 404
    status, said = serving.ask("POST", "/api/v1/plans/pair/stop", token, {})
    assert status == 200, said
    serving.until(lambda: tasks()[0] == "cancelled", "the running task is stopped")
    assert state() == "stopped"
    serving.kill()
    serving.start("--jobs", "1")
    assert serving.ask("GET", "/api/v1/plans/pair", token)[1]["tasks"][1]["run"] == ""
    status, said = serving.ask("POST", "/api/v1/plans/pair/retry", token, {"task": "second"})
    assert status == 409 and "second has not failed" in said["detail"], said
    (written.parent / "go.txt").write_text("")
    status, said = serving.ask("POST", "/api/v1/plans/pair/retry", token, {})
    assert status == 200 and said["state"] in ("queued", "running"), said
    serving.until(lambda: state() == "succeeded", "the plan is done")
    (first, *_) = serving.ask("GET", "/api/v1/plans/pair", token)[1]["tasks"]
    assert (first["attempts"], first["verdict"]) == (2, "native"), first
    status, said = serving.ask("POST", "/api/v1/plans/pair/retry", token, {})
    assert status == 409 and "has succeeded" in said["detail"]
    assert serving.ask("POST", "/api/v1/plans/pair/stop", token, {})[0] == 409
    assert serving.stop() == 0


def test_the_correction_of_a_plan_is_made_by_the_pool(machine: Make) -> None:
    """If the check of a plan fails, the pool alone performs the correction. A stop of the server
    during the correction waits for it, and the next server finds that the check passes."""
    one, serving = machine(
        "run echo one > one.txt\n---\nsay One.\n---\nrun echo two > two.txt\n---\nsay Two.\n---\n"
        "run touch begun; until test -e go; do sleep 0.1; done; touch fixed\n---\nsay Fixed.\n"
    )
    serving.start("--jobs", "2")
    token = serving.token("admin")
    assert serving.ask("POST", "/api/v1/plans", token, plan(one, verify="test -e fixed"))[0] == 201
    begun = serving.until(lambda: first_file(one.home, "begun"), "the correction is made")
    assert serving.process is not None
    serving.process.send_signal(signal.SIGTERM)
    serving.until(lambda: "draining" in serving.said(), "it drains")
    (begun.parent / "go").touch()
    assert serving.process.wait(PATIENCE_S) == 0
    serving.start("--jobs", "2")
    serving.until(
        lambda: serving.ask("GET", "/api/v1/plans/pair", token)[1]["state"] in OVER,
        "the plan is over",
    )
    found = serving.ask("GET", "/api/v1/plans/pair", token)[1]
    assert (found["state"], found["verified"]) == ("succeeded", True), found
    assert serving.stop() == 0
    events = one.perdure("logs", found["tasks"][1]["run"], "--json").out.splitlines()
    kinds = [json.loads(line)["event"]["kind"] for line in events]
    assert kinds.count("attempt_claimed") == 2 and "attempt_adopted" not in kinds, kinds
