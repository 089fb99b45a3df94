"""An agent's request on the page of its run: always shown as text, and answered at phone width with
only the keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import expect

from perdure import store as stores
from perdure.model import TaskRun
from perdure.model.requests import AgentRequest, AnswerKind, RequestKind, RequestState
from perdure.store.sql import SqlStore
from perdure.testing.stores.requests import waiting
from tests.dashboard.browsing import Looking
from tests.dashboard.filling import storable
from tests.dashboard.hostile import TAGS
from tests.dashboard.test_doors import Door
from tests.web.serving import Serving

COMMAND = storable("\x1b[2J\u202egnp.exe\n" + "\n".join(TAGS))
QUESTION = {
    "questions": [{"question": f"Which? {TAGS[0]}", "options": [{"label": tag} for tag in TAGS]}]
}


def asking(store: SqlStore, kind: RequestKind, given: object, size: int = 0) -> TaskRun:
    """Make a run that waits for the answer to this request."""
    payload = json.dumps(given)
    tool = "AskUserQuestion" if kind is RequestKind.QUESTION else TAGS[0]
    change = {"kind": kind, "tool": tool, "payload": payload, "size": size or len(payload)}
    return waiting(store, **change)


@pytest.fixture(scope="module")
def asked(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Serving, dict[str, TaskRun], Path]]:
    """Run a server without a pool, with a hostile call, a hostile question and a call that is too
    long to show."""
    serving = Serving(tmp_path_factory.mktemp("asked"))
    database = serving.state / "perdure.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    store = stores.open(database)
    runs = {
        "call": asking(store, RequestKind.APPROVAL, {"command": COMMAND}),
        "other": asking(store, RequestKind.APPROVAL, {"command": "make deploy"}),
        "question": asking(store, RequestKind.QUESTION, QUESTION),
        "long": asking(store, RequestKind.APPROVAL, {"command": "x"}, size=1_000_000),
    }
    store.close()
    yield serving.start("--jobs", "0"), runs, database
    serving.stop()


def request_of(database: Path, run: TaskRun) -> AgentRequest:
    with closing(stores.open(database)) as store:
        (request,) = store.requests(run.id)
        return request


def test_a_call_is_allowed_by_keyboard_on_a_phone(
    asked: tuple[Serving, dict[str, TaskRun], Path], look: Callable[..., Looking]
) -> None:
    """The page shows the command as text, with the names of hidden characters. Nothing of it runs,
    the page is no wider than the screen, and the keyboard reaches the buttons in order."""
    serving, runs, database = asked
    window = look(serving, serving.token("admin"), width=390)
    page = window.open(f"/runs/{runs['call'].name}")
    shown = page.locator(".request pre").inner_text()
    assert "^[[2J<U+202E>gnp.exe\\n<script>alert(1)</script>" in shown
    assert window.nodes() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".request pre").focus()
    page.keyboard.press("Tab")
    expect(page.locator(".request textarea")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator(".request button", has_text="Allow once")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**?done=answered")
    assert page.locator(".request").count() == 0
    request = request_of(database, runs["call"])
    assert request.answer is AnswerKind.ALLOW
    assert request.by.startswith("token:admin")


def test_a_question_is_answered_by_keyboard_on_a_phone(
    asked: tuple[Serving, dict[str, TaskRun], Path], look: Callable[..., Looking]
) -> None:
    """A question and its options are shown as text. The answer is the text that the person
    typed."""
    serving, runs, database = asked
    window = look(serving, serving.token("dispatch"), width=390)
    page = window.open(f"/runs/{runs['question'].name}")
    assert page.locator(".request li").all_inner_texts()[0] == TAGS[0]
    assert window.nodes() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".request textarea").focus()
    page.keyboard.type("SQLite <b>please</b>")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**?done=answered")
    request = request_of(database, runs["question"])
    assert (request.answer, request.words) == (AnswerKind.TEXT, "SQLite <b>please</b>")


def test_who_may_answer(asked: tuple[Serving, dict[str, TaskRun], Path]) -> None:
    """A reader sees a request without a form. With `dispatch` a call can be refused, but not
    allowed. A form of another site is refused. A call that was not shown completely cannot be
    allowed."""
    serving, runs, database = asked
    path = f"/runs/{runs['other'].name}"
    tokens = {scope: serving.token(scope) for scope in ("read", "dispatch", "admin")}
    reader = Door(serving, tokens["read"]).ask("GET", path)[2]
    assert "make deploy" in reader
    assert 'name="answer"' not in reader
    sender = Door(serving, tokens["dispatch"])
    page = sender.ask("GET", path)[2]
    assert 'value="deny"' in page
    assert 'value="allow"' not in page
    secret = page.split('name="csrf" value="')[1].split('"')[0]
    assert sender.ask("POST", f"{path}/answer", "answer=deny&request=1")[0] == 403
    assert sender.ask("POST", f"{path}/answer", f"answer=allow&request=1&csrf={secret}")[0] == 403
    assert request_of(database, runs["other"]).state is RequestState.OPEN
    assert sender.ask("POST", f"{path}/answer", f"answer=deny&request=1&csrf={secret}")[0] == 303
    assert sender.ask("POST", f"{path}/answer", f"answer=deny&request=1&csrf={secret}")[0] == 409
    admin = Door(serving, tokens["admin"])
    long = f"/runs/{runs['long'].name}"
    page = admin.ask("GET", long)[2]
    assert 'value="allow"' not in page
    secret = page.split('name="csrf" value="')[1].split('"')[0]
    assert admin.ask("POST", f"{long}/answer", f"answer=allow&csrf={secret}")[0] in (400, 422)
