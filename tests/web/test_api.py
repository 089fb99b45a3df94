"""The API with a real agent: every verb and list, the same JSON as the command line, and what each
token may do."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.agents.rehearsal import Rehearsal
from perdure.model import TokenScope
from perdure.server.api import shapes
from perdure.server.api.routes import VERBS
from tests.journeys.stage import Stage
from tests.web.listening import stream
from tests.web.serving import PATIENCE_S, Serving, answered

Machine = tuple[Stage, Serving]
SHAPES = {verb.id: verb.answer for verb in VERBS}


@pytest.fixture
def machine() -> Iterator[Callable[[str], Machine]]:
    """Make a stage with Claude Code and a scripted model, and a server for it. The paths are short,
    because the path of a socket has at most 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="pa"))
    made: list[Machine] = []

    def make(script: str) -> Machine:
        one = Stage(directory, "claude", Rehearsal(script).start())
        made.append((one, Serving(one.home, 'permissions = "full"\n', **one.environ)))
        return made[-1]

    yield make
    for one, serving in made:
        serving.kill()
        one.close()
        one.rehearsal.stop()
    shutil.rmtree(directory, ignore_errors=True)


def fetched(serving: Serving, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", serving.port, timeout=PATIENCE_S)
    ) as connection:
        connection.request("GET", f"/api/v1{path}", headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(),
        )


def fits(answer: dict[str, Any], shape: str) -> dict[str, Any]:
    """Check that the answer has exactly the fields of its shape, and return it."""
    msgspec.convert(answer, shapes.named(shape))
    return answer


def test_a_task_from_its_submission_to_its_end(machine: Callable[[str], Machine]) -> None:
    """With a real agent, a run is submitted, followed, updated, forked, opened and taken back,
    reset, restored and removed only by the API. Every answer matches the document and the output of
    the command line."""
    one, serving = machine(
        "run echo one > one.txt\n---\nsay One.\n---\nrun echo two > two.txt\n---\nsay "
        "Two.\n---\nsay Forked.\n"
    )
    serving.start("--jobs", "1")
    token = serving.token("admin")

    def ask(
        method: str, path: str, shape: str, body: object = None, status: int = 200
    ) -> dict[str, Any]:
        got, answer = serving.ask(method, f"/api/v1{path}", token, body)
        assert got == status, answer
        return fits(answer, shape)

    def finished(name: str, attempts: int) -> dict[str, Any]:
        def over() -> dict[str, Any] | None:
            found = ask("GET", f"/runs/{name}", "Run")
            return (
                found
                if found["state"] == "succeeded" and len(found["attempts"]) == attempts
                else None
            )

        return serving.until(over, f"{name} is done")

    task = {
        "prompt": "Make one.txt",
        "repo": str(one.repo),
        "name": "task",
        "key": "a-key",
        "labels": {"team": "a"},
    }
    run = ask("POST", "/runs", "Run", task, 201)
    assert ask("POST", "/runs", "Run", task, 201)["id"] == run["id"], "the same key is the same run"
    with stream(serving, "/api/v1/runs/task/events", token) as events:
        told = events.until("run_finished")
    numbers = [number for number, _ in told]
    assert numbers == sorted(set(numbers)) and told[0][1]["event"]["kind"] == "run_submitted"
    found = finished("task", 1)
    assert found == one.show("task")
    assert ask("GET", "/runs/task/why", "Why") == one.perdure("why", "task", "--json").json
    listed = ask("GET", "/runs", "Runs")
    assert listed["runs"] == one.perdure("ls", "--json").json["runs"] and listed["next"] is None
    records = ask("GET", "/runs/task/logs?limit=5000", "Records")["records"]
    assert records == [
        json.loads(line) for line in one.perdure("logs", "task", "--json").out.splitlines()
    ]
    assert [record for _, record in told] == records[: len(told)]
    assert (
        ask("GET", "/runs/task/checkpoints", "Checkpoints")
        == one.perdure("checkpoints", "task", "--all", "--json").json
    )
    assert found["attempts"][0]["work"]["verdict"] == "unverified", "nobody checked"
    assert ask("GET", "/agents", "Agents") == one.perdure("agents", "--json").json
    session = found["attempts"][0]["session_id"]
    shown = ask("GET", f"/sessions/{session}", "Session")
    assert shown == one.perdure("sessions", "show", session, "--json").json
    assert [
        each["id"] for each in ask("GET", "/sessions?agent=claude", "Sessions")["sessions"]
    ] == [session]
    assert [
        each["by_agent"] for each in ask("GET", f"/sessions/{session}/spoken", "Spoken")["spoken"]
    ][:1] == [False]
    assert (
        ask("GET", "/sessions/stats?since=1h", "Statistics")
        == one.perdure("sessions", "stats", "--json", "--since", "1h").json
    )
    for path, shape in (
        ("/plans", "Plans"),
        ("/inbox", "Deliveries"),
        ("/disk", "Disk"),
        ("/disk/sweep?all=true", "Swept"),
        ("/trash", "Trash"),
    ):
        ask("GET", path, shape)

    status, headers, patch = fetched(serving, "/runs/task/diff", token)
    assert (status, headers["content-type"], headers["x-content-type-options"]) == (
        200,
        "text/plain; charset=utf-8",
        "nosniff",
    )
    assert (
        b"+one" in patch and headers["content-disposition"] == 'attachment; filename="task.patch"'
    )
    assert b"one.txt" in fetched(serving, "/runs/task/diff?stat=true", token)[2]
    raw = fetched(serving, "/runs/task/raw?attempt=1", token)[2]
    assert raw == Path(found["attempts"][0]["directory"], "stdout").read_bytes() and raw

    ask("POST", "/runs/task/update", "Run", {"prompt": "Now two.txt"})
    assert finished("task", 2)["attempts"][1]["receipt"]["verdict"] == "native"
    assert (
        "Now two.txt" in one.rehearsal.prompts()[-1]
        and "Make one.txt" not in one.rehearsal.prompts()[-1]
    )
    fork = ask("POST", "/runs/task/fork", "Run", {"prompt": "Go another way", "name": "other"}, 201)
    assert fork["name"] == "other" and finished("other", 1)["attempts"][0]["continuation"] == "fork"
    page = ask("GET", "/runs?limit=1", "Runs")
    assert [each["name"] for each in page["runs"]] == ["other"]
    assert [
        each["name"]
        for each in ask(
            "GET", f"/runs?limit=1&cursor={page['next']}&state=succeeded&agent=claude", "Runs"
        )["runs"]
    ] == ["task"]
    assert ask("GET", "/runs?state=running&state=queued", "Runs")["runs"] == []

    restored = ask("POST", "/runs/task/restore", "Restored", {"checkpoint": 1, "files_only": True})
    workdir = Path(found["workspace"]["path"])
    assert (
        restored["checkpoint"]["number"] == 1
        and restored["undo"]
        and not (workdir / "two.txt").exists()
    )
    target = {"agent": "claude", "repository": str(one.repo), "branch": "perdure/task"}
    assert ask("POST", "/admin/reset", "Cleared", target) | {"unsaved": []} == ask(
        "POST", "/admin/reset", "Cleared", target
    ) | {"unsaved": []}
    assert workdir.exists(), "without `dry_run: false` nothing is cleared"
    cleared = ask("POST", "/admin/reset", "Cleared", target | {"dry_run": False})
    assert cleared["runs"] == ["task"] and not workdir.exists()
    (entry,) = ask("GET", "/trash", "Trash")["entries"]
    assert ask("POST", f"/trash/{entry['id']}/restore", "Returned")["places"] and workdir.exists()
    status, said = serving.ask("DELETE", "/api/v1/runs/task", token)
    assert status == 409 and "nowhere else" in said["detail"] and "--force" in said["hint"]
    gone = ask("DELETE", "/runs/task?force=true", "Removed")
    assert gone["run"] == "task" and serving.ask("GET", "/api/v1/runs/task", token)[0] == 404
    assert serving.ask("DELETE", f"/api/v1/trash/{gone['trash'][:-1]}", token)[0] == 404, (
        "what is for ever is named in full"
    )
    assert ask("DELETE", f"/trash/{gone['trash']}", "Purged")["id"] == gone["trash"]
    ask("POST", "/admin/sweep", "Swept", {})
    assert serving.stop() == 0
    one.nothing_survives()


def test_a_retry_changes_the_run(machine: Callable[[str], Machine]) -> None:
    """A retry may change policy, limits and the number of attempts. The changes are recorded in the
    journal and stay in effect. Limits above those of the service need an admin. Impossible values
    are refused."""
    one, serving = machine("slow 600\nsay Never.\n---\nsay Done.\n")
    serving.start("--jobs", "1")
    token = serving.token("admin")
    path = "/api/v1/runs/task/retry"
    with stream(serving, "/api/v1/events", token) as events:
        assert (
            serving.ask(
                "POST",
                "/api/v1/runs",
                token,
                {"prompt": "Go", "repo": str(one.repo), "name": "task"},
            )[0]
            == 201
        )
        events.until("agent_launched")
        serving.until(lambda: one.rehearsal.requests, "the agent has asked")
        assert serving.ask("POST", "/api/v1/runs/task/stop", token)[0] == 200
        events.until("run_finished")
        assert serving.ask("POST", path, serving.token("dispatch"), {"attempts": 900})[0] == 403
        assert serving.ask("POST", path, token, {"attempts": 0})[0] == 400
        changes = {"continuity": "strict", "budget_usd": 2.5, "timeout_s": 900, "attempts": 4}
        status, said = serving.ask("POST", path, token, changes)
        assert status == 200 and (said["policy"], said["attempts_allowed"]) == ("strict", 5), said
        events.until("run_finished")
    assert serving.ask("GET", "/api/v1/runs/task", token)[1]["state"] == "succeeded"
    records = serving.ask("GET", "/api/v1/runs/task/logs?limit=5000", token)[1]["records"]
    changed = [
        record["event"]["names"]
        for record in records
        if record["event"]["kind"] == "settings_changed"
    ]
    assert [sorted(names) for names in changed] == [["budget_usd", "continuity", "timeout_s"]]
    assert serving.stop() == 0
    one.nothing_survives()


def test_a_run_at_work_is_stopped_and_goes_on(machine: Callable[[str], Machine]) -> None:
    """A stop ends the agent properly, and a retry continues the same conversation. An impossible
    request is a conflict with a hint."""
    one, serving = machine("slow 600\nsay Never.\n---\nsay Done.\n")
    serving.start("--jobs", "1")
    token = serving.token("admin")
    with stream(serving, "/api/v1/events", token) as events:
        assert (
            serving.ask(
                "POST",
                "/api/v1/runs",
                token,
                {"prompt": "Go", "repo": str(one.repo), "name": "task"},
            )[0]
            == 201
        )
        events.until("agent_launched")
        serving.until(lambda: one.rehearsal.requests, "the agent has asked")
        assert serving.ask("POST", "/api/v1/runs/task/retry", token, {})[0] == 409
        assert serving.ask("DELETE", "/api/v1/runs/task", token)[0] == 409
        for _ in range(2):
            message = {"prompt": "Use tabs.", "key": "k"}
            status, said = serving.ask("POST", "/api/v1/runs/task/tell", token, message)
            (told,) = fits(said, "Run")["messages"]
            assert (status, told["text"], told["version"]) == (200, "Use tabs.", 2)
        status, said = serving.ask("POST", "/api/v1/runs/task/stop", token)
        assert status == 200, said
        events.until("run_finished")
        assert (
            fits(serving.ask("GET", "/api/v1/runs/task", token)[1], "Run")["state"] == "cancelled"
        )
        assert serving.ask("POST", "/api/v1/runs/task/stop", token)[0] == 409
        assert serving.ask("POST", "/api/v1/runs/task/tell", token, message)[0] == 200
        message["key"] = "another"
        assert serving.ask("POST", "/api/v1/runs/task/tell", token, message)[0] == 409
        assert serving.ask("POST", "/api/v1/runs/task/resume", token, {})[0] == 200
        events.until("run_finished")
    found = serving.ask("GET", "/api/v1/runs/task", token)[1]
    assert found["state"] == "succeeded" and found["attempts"][-1]["receipt"]["verdict"] == "native"
    assert serving.stop() == 0
    one.nothing_survives()


def test_an_agent_is_answered_by_the_api(machine: Callable[[str], Machine], tmp_path: Path) -> None:
    """A question and a call are listed, answered and refused by the API. Only an admin may allow a
    call. The pool continues the run at once."""
    asked = {"question": "Which port?", "header": "Port", "multiSelect": False}
    asked["options"] = [{"label": each, "description": each} for each in ("80", "443")]
    file = tmp_path / "outside.txt"
    write = f"call Write {json.dumps({'file_path': str(file), 'content': 'ran'})}\n"
    question = f"call AskUserQuestion {json.dumps({'questions': [asked]})}\n"
    one, serving = machine(f"by history\n{question}---\n{write}---\n{write}---\nsay It is done.\n")
    serving.start("--jobs", "1")
    admin, dispatch = serving.token("admin"), serving.token("dispatch")
    path = "/api/v1/runs/task/answer"
    task = {"prompt": "Do it.", "repo": str(one.repo), "name": "task", "permissions": "edit"}
    assert serving.ask("POST", "/api/v1/runs", admin, task)[0] == 201

    def opened(number: int) -> Any:
        found = fits(serving.ask("GET", "/api/v1/requests", dispatch)[1], "Requests")["requests"]
        return [each for each in found if each["number"] == number]

    (request,) = one.until(lambda: opened(1), "it asks a question")
    assert (request["kind"], request["name"]) == ("question", "task")
    for body in ({"answer": "maybe"}, {"answer": "text"}, {"answer": "text", "words": "x" * 8001}):
        assert serving.ask("POST", path, dispatch, body)[0] in (400, 422), body
    assert serving.ask("POST", path, dispatch, {"answer": "text", "words": "443"})[0] == 200
    (request,) = one.until(lambda: opened(2), "it wants to write")
    status, said = serving.ask("POST", path, dispatch, {"answer": "allow"})
    assert (status, "admin" in said["detail"]) == (403, True)
    assert serving.ask("POST", path, admin, {"answer": "allow"})[0] == 200
    assert serving.ask("POST", path, admin, {"answer": "deny", "request": 2})[0] == 409
    run = "/api/v1/runs/task"
    one.until(lambda: serving.ask("GET", run, admin)[1]["state"] == "succeeded", "it is done")
    assert file.read_text() == "ran"
    found = fits(serving.ask("GET", f"{run}/requests", dispatch)[1], "Requests")["requests"]
    assert [each["by"].partition("-")[0] for each in found] == ["token:dispatch", "token:admin"]
    assert serving.stop() == 0


def test_each_verb_needs_its_scope(serving: Serving) -> None:
    """A request without a token, or with a token of a smaller scope, is refused before anything is
    read. One with a sufficient token is accepted."""
    tokens = {scope: serving.token(scope.value) for scope in TokenScope}
    order = list(TokenScope)
    for verb in VERBS:
        path = "/api/v1" + verb.path.replace("{", "no-").replace("}", "")
        assert serving.ask(verb.method, path, "", {} if verb.body else None)[0] == 401
        for scope, token in tokens.items():
            status = serving.ask(verb.method, path, token, {} if verb.body else None)[0]
            assert (status == 403) == (order.index(scope) < order.index(verb.scope)), (
                verb.id,
                scope,
                status,
            )


BEYOND = [
    {"here": "/tmp"},
    {"agent_args": ["--x"]},
    {"env": {"A": "b"}},
    {"pass_env": ["THE_SECRET"]},
    {"verify": "true"},
    {"permissions": "full"},
    {"repo": "/srv/repository"},
    {"repo": "git@example.com:a/b"},
    {"repo": "http://127.0.0.1/a/b"},
    {"repo": "ext::sh -c id"},
    {"attempts": 4},
    {"timeout_s": 0},
    {"timeout_s": 3601},
    {"stall_s": 0},
    {"verify_timeout_s": 0},
]


@pytest.mark.parametrize("beyond", BEYOND, ids=[json.dumps(each) for each in BEYOND])
def test_who_may_dispatch_stays_within_what_the_owner_has_set(
    serving: Serving, beyond: dict[str, Any]
) -> None:
    """A request that runs commands of the caller's choosing, reads the service's own variables or
    disk, or raises a limit needs an admin."""
    token = serving.token("dispatch") if not hasattr(serving, "dispatcher") else serving.dispatcher
    serving.dispatcher = token  # type: ignore[attr-defined]
    task = {"prompt": "x", "repo": "https://git.example.com/a/b"} | beyond
    status, said = serving.ask("POST", "/api/v1/runs", token, task)
    assert status == 403 and next(iter(beyond)) in said["detail"] and "admin" in said["detail"]


BAD = [
    (b"[1]", 400, "not a JSON object"),
    (b"{", 400, "not JSON"),
    (b'{"prompt": "a", "prompt": "b"}', 400, "twice"),
    (b'{"prompt": NaN}', 400, "NaN"),
    (b'{"prompt": "\\ud800"}', 400, "surrogate"),
    (b"\xff", 400, "UTF-8"),
    (b"[" * 100_000, 400, "deep"),
    (b'{"prompt": ' + b"[" * 70 + b"]" * 70 + b"}", 400, "deep"),
    (b'{"attempts": ' + b"9" * 5000 + b"}", 400, "not a JSON object"),
    (b'{"prompt": "x", "attempts": "3"}', 400, "$.attempts"),
    (b'{"prompt": "x", "attempts": 1e400}', 400, "$.attempts"),
    (b'{"prompt": "x", "timeout_s": 1e400}', 400, "$.timeout_s"),
    (b'{"prompt": ""}', 400, "$.prompt"),
    (b'{"prompt": "x\\u0000y"}', 400, "$.prompt"),
    (b'{"prompt": "x", "name": "a\\nb"}', 400, "$.name"),
    (b'{"prompt": "x", "unknown": 1}', 400, "unknown"),
    (b'{"prompt": "x", "forks": "a"}', 400, "forks"),
    (b'{"prompt": "x", "rule": "dev"}', 400, "rule"),
    (
        b'{"prompt": "x", "service": "a", "task": "b", "labels": {"delivery": "1", "source": '
        b'"hub"}}',
        422,
        "delivery, source",
    ),
    (b'{"prompt": "x", "permissions": "all"}', 400, "$.permissions"),
    (b'{"prompt": "  ", "service": "a", "task": "b"}', 422, ""),
]


@pytest.mark.parametrize(
    ("body", "status", "says"), BAD, ids=[str(number) for number in range(len(BAD))]
)
def test_bad_bodies(serving: Serving, body: bytes, status: int, says: str) -> None:
    """An invalid body is refused with the place of the error, and nothing is made."""
    token = (
        serving.token("admin") if not hasattr(serving, "administrator") else serving.administrator
    )
    serving.administrator = token  # type: ignore[attr-defined]
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    got, said = serving.send("/api/v1/runs", body, headers)
    assert (got, said["status"]) == (status, status) and says in said["detail"], said
    assert serving.send("/api/v1/runs", b"{}", headers | {"content-type": "text/plain"})[0] == 415
    assert serving.ask("GET", "/api/v1/runs", token)[1]["runs"] == []


def test_a_body_that_is_too_large(serving: Serving) -> None:
    """A body whose length is over the limit is refused before it is sent. A body without a length
    is refused as soon as it exceeds 4 MiB."""
    head = f"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {serving.token('admin')}\r\n".encode()
    head += b"Content-Type: application/json\r\n"
    with serving.raw() as connection:
        connection.sendall(head + b"Content-Length: 4194305\r\n\r\n")
        assert answered(connection).startswith(b"HTTP/1.1 413")
    with serving.raw() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(5):
                connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        assert answered(connection)[:12] in (b"HTTP/1.1 413", b"")  # a reset discards the answer
    assert serving.ask("GET", "/healthz")[0] == 200


def test_nothing_changes_by_a_get(serving: Serving) -> None:
    """No address that changes something accepts GET. Every verb with GET needs only `read`."""
    token = serving.token("admin")
    reading = {verb.path for verb in VERBS if verb.method == "GET"}
    for verb in VERBS:
        if verb.method == "GET":
            assert verb.scope is TokenScope.READ and verb.body is None
        elif verb.path not in reading and "{entry}" not in verb.path:
            assert serving.ask(
                "GET", "/api/v1" + verb.path.replace("{", "").replace("}", ""), token
            )[0] in (404, 405), verb.path
