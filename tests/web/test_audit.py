"""The audit trail in the API and on the dashboard: who may read it, its filters, and an export
whose chain a client can verify without the server."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from perdure import store as stores
from perdure.host.actors import acting
from perdure.model import TaskRun
from perdure.model.requests import AnswerKind
from perdure.rules.audit_chain import problems, read
from perdure.server.api import shapes
from perdure.testing.stores.requests import waiting
from tests.web.serving import PATIENCE_S, Serving

EVE = "forge:hub/<img src=x onerror=alert(1)>\u202e"


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Serving, list[TaskRun], dict[str, str]]]:
    """Make a server without a pool, two runs whose requests were answered by two people, and
    tokens."""
    serving = Serving(tmp_path_factory.mktemp("audit"))
    database = serving.state / "perdure.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(stores.open(database)) as store:
        runs = []
        for person in ("token:ada", EVE):
            with acting(person):
                runs.append(waiting(store))
                store.answer(runs[-1].id, 1, AnswerKind.DENY, "no")
    tokens = {scope: serving.token(scope) for scope in ("read",)}
    yield serving.start("--jobs", "0"), runs, tokens
    serving.stop()


def text_of(serving: Serving, path: str, token: str) -> tuple[int, str]:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", serving.port, timeout=PATIENCE_S)
    ) as connection:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_the_trail_over_the_api(
    served: tuple[Serving, list[TaskRun], dict[str, str]],
) -> None:
    """The trail can be read in pages, and filtered by actor, run and time. Without a token it is
    refused."""
    serving, runs, tokens = served
    assert serving.ask("GET", "/api/v1/audit")[0] == 401
    reader = tokens["read"]
    code, found = serving.ask("GET", "/api/v1/audit?limit=2", reader)
    assert code == 200
    msgspec.convert(found, shapes.Audit)
    assert [each["number"] for each in found["lines"]] == [1, 2] and found["next"] == 2
    seen, after = [], 0
    while after is not None:
        _, page = serving.ask("GET", f"/api/v1/audit?limit=2&after={after}", reader)
        seen += page["lines"]
        after = page["next"]
    assert [each["number"] for each in seen] == list(range(1, len(seen) + 1))
    _, page = serving.ask("GET", "/api/v1/audit?actor=ada", reader)
    kinds = {each["kind"] for each in page["lines"]}
    assert {"run_submitted", "request_answered"} <= kinds
    assert {each["actor"] for each in page["lines"]} == {"token:ada"}
    _, page = serving.ask("GET", f"/api/v1/audit?run={runs[1].name}", reader)
    assert {each["run"] for each in page["lines"]} == {runs[1].id}
    _, page = serving.ask("GET", f"/api/v1/audit?since={2**52}", reader)
    assert (page["lines"], page["next"]) == ([], None)
    assert serving.ask("GET", "/api/v1/audit?run=nobody", reader)[0] == 404
    assert serving.ask("GET", "/api/v1/audit?limit=0", reader)[0] == 400


def test_the_page_of_the_trail(
    served: tuple[Serving, list[TaskRun], dict[str, str]], tmp_path: Path
) -> None:
    """The page of the trail is in the navigation and needs a sign-in. Names of people are shown as
    text. The same filters apply to its JSON lines. All lines together are the complete chain."""
    serving, runs, tokens = served
    assert text_of(serving, "/audit", "")[0] in (303, 401)
    assert text_of(serving, "/audit.jsonl", "")[0] in (303, 401)
    reader = tokens["read"]
    assert 'href="/audit"' in text_of(serving, "/", reader)[1]
    code, page = text_of(serving, "/audit", reader)
    assert code == 200 and "token:ada" in page and runs[0].name in page
    assert "<img" not in page and "\u202e" not in page and "&lt;img" in page
    _, page = text_of(serving, "/audit?actor=ada&since=all", reader)
    assert "token:ada" in page and "&lt;img" not in page.partition("<table")[2]
    _, page = text_of(serving, f"/audit?run={runs[1].name}", reader)
    assert "&lt;img" in page and "token:ada" not in page.partition("<table")[2]
    assert "nobody" in text_of(serving, "/audit?run=nobody", reader)[1]
    assert text_of(serving, "/audit?since=ever", reader)[0] == 422
    code, text = text_of(serving, "/audit.jsonl?actor=ada", reader)
    actors = {json.loads(line)["actor"] for line in text.splitlines()}
    assert (code, actors) == (200, {"token:ada"})
    _, text = text_of(serving, "/audit.jsonl?since=all", reader)
    lines = [read(line, number) for number, line in enumerate(text.splitlines(), 1)]
    assert len(lines) > 5 and list(problems(iter(lines))) == []
