"""Links in notices, each of which gives one answer to one request, on a real `perdure serve`."""

from __future__ import annotations

import contextlib
import http.client
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from playwright.sync_api import sync_playwright

from perdure import store as stores
from perdure.engine.notices import Notifier
from perdure.engine.notices.links import link_key, linking
from perdure.errors import StoreError
from perdure.model import TaskRun
from perdure.model.notices import Channel, ChannelKind, Notice, NoticeBody, NoticeEvent, channels
from perdure.model.requests import AgentRequest, AnswerKind, RequestState
from perdure.rules.answer_links import AnswerLink, link_to, signed, verified
from perdure.rules.notification import text_of
from perdure.store.sql import SqlStore
from perdure.testing.stores.requests import RESTORED, waiting
from tests.dashboard.browsing import FLAGS
from tests.patience import PATIENCE_S
from tests.web.serving import Serving

ALLOW, DENY = AnswerKind.ALLOW, AnswerKind.DENY
PUBLIC = "https://perdure.example.com"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("links"))
    serving.state.mkdir(parents=True)
    link_key(serving.state, make=True)
    yield serving.start()
    serving.stop()


@pytest.fixture
def store(served: Serving) -> Iterator[SqlStore]:
    with closing(stores.open(served.state / "perdure.db")) as found:
        yield found


def request_of(store: SqlStore, run: TaskRun) -> AgentRequest:
    return store.requests(run.id)[0]


def link(served: Serving, request: AgentRequest, answer: AnswerKind = ALLOW) -> str:
    """Return the path of the link that a notice has."""
    return f"/link/{signed(link_to(request, answer, 'team'), link_key(served.state))}"


def send(served: Serving, method: str, path: str, **headers: str) -> tuple[int, str]:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    ) as connection:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=given)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize(("answer", "button"), [(ALLOW, "Allow once"), (DENY, "Refuse")])
def test_a_link_answers_once(
    served: Serving, store: SqlStore, answer: AnswerKind, button: str
) -> None:
    """A GET of the link shows the call and changes nothing, however often it is requested. The
    button answers, once. After that neither this link nor the one for the other answer can be used.
    The channel is the actor."""
    run = waiting(store)
    request = request_of(store, run)
    path = link(served, request, answer)
    for method in ("GET", "GET", "HEAD"):
        status, page = send(served, method, path)
        assert status == 200 and (method == "HEAD" or (button in page and "make deploy" in page))
    assert request_of(store, run).state is RequestState.OPEN
    status, page = send(served, "POST", path)
    assert status == 200 and "goes on as soon as" in page
    given = request_of(store, run)
    assert (given.state, given.answer, given.by) == (RequestState.ANSWERED, answer, "link:team")
    assert given.via == "link/team"
    for other in (ALLOW, DENY):
        for method in ("GET", "POST"):
            status, page = send(served, method, link(served, request, other))
            assert status == 409 and "answered" in page
    assert request_of(store, run) == given
    assert {each.actor for each in store.audit(run=run.id) if each.kind == "request_answered"} == {
        "link:team"
    }
    assert path.removeprefix("/link/") not in served.said()


def test_of_two_people_at_the_same_moment_one_answers(served: Serving, store: SqlStore) -> None:
    """Ten simultaneous presses of the two buttons give one answer."""
    run = waiting(store)
    paths = [link(served, request_of(store, run), each) for each in (ALLOW, DENY)] * 5
    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(lambda path: send(served, "POST", path)[0], paths))
    assert sorted(codes) == [200, *[409] * 9]


def test_a_changed_link_is_unknown(served: Serving, store: SqlStore) -> None:
    """A link with any other character, from another key, or with other content is not found, and
    all of these get the same response. Without a key, no link is valid."""
    run = waiting(store)
    request = request_of(store, run)
    path = link(served, request, DENY)
    text = path.removeprefix("/link/")
    changed = [
        text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(len(text))
    ]
    key = link_key(served.state)
    assert all(verified(each, key) is None for each in changed) and verified(text, key)
    other = signed(link_to(request, ALLOW, "team"), b"x" * 32)
    odd = [text + "=", text + "A", text[:-1], "", "A" * 10_000, "é", "%2e%2e", other]
    pages = {
        send(served, "POST", f"/link/{each}") for each in (changed[0], changed[-1], *odd[:3], other)
    }
    assert len(pages) == 1 and pages.pop()[0] == 404
    assert all(verified(each, key) is None for each in odd)
    question = signed(replace_answer(request), key)
    assert verified(question, key) is None
    assert request_of(store, run).state is RequestState.OPEN


def replace_answer(request: AgentRequest) -> AnswerLink:
    """Return a link with an answer that no real link gives."""
    return msgspec.structs.replace(link_to(request, DENY, "team"), answer=AnswerKind.TEXT)


def test_other_sites_use_no_link(served: Serving, store: SqlStore) -> None:
    """A page of another site cannot press the button."""
    run = waiting(store)
    path = link(served, request_of(store, run))
    others = ({"origin": "https://evil.example.com"}, {"sec_fetch_site": "cross-site"})
    for headers in (*others, {"origin": "null", "sec_fetch_site": "same-origin"}):
        assert send(served, "POST", path, **headers)[0] == 403
    assert request_of(store, run).state is RequestState.OPEN


def test_a_link_in_a_browser(served: Serving, store: SqlStore) -> None:
    """A person opens the link in a real browser and presses the button: the call is allowed."""
    run = waiting(store)
    address = f"http://127.0.0.1:{served.port}{link(served, request_of(store, run))}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto(address)
        page.get_by_role("button", name="Allow once").press("Enter")
        page.get_by_text("goes on as soon as").wait_for()
        browser.close()
    assert request_of(store, run).answer is ALLOW


def test_an_expired_link(served: Serving, store: SqlStore) -> None:
    """A link expires with its request."""
    run = waiting(store, lasts_ms=1)
    time.sleep(0.01)
    for method in ("GET", "POST"):
        status, page = send(served, method, link(served, request_of(store, run)))
        assert status == 409 and "expired" in page
    assert request_of(store, run).answer is None


@pytest.mark.parametrize(
    "happens",
    [
        lambda store, run: store.update(run.id, "something else"),
        lambda store, run: store.requeue(run.id, "retry"),
        lambda store, run: store.request_cancel(run.id),
        lambda store, run: store.reset([run.id], "start over"),
        lambda store, run: store.restored(run.id, [], RESTORED),
    ],
    ids=["updated", "retried", "stopped", "reset", "restored"],
)
def test_a_link_to_a_request_that_is_over(
    served: Serving, store: SqlStore, happens: Callable[[SqlStore, TaskRun], Any]
) -> None:
    """After anything else has happened to the run, the link is refused with a sentence."""
    run = waiting(store)
    path = link(served, request_of(store, run))
    assert send(served, "GET", path)[0] == 200
    happens(store, run)
    for method in ("GET", "POST"):
        status, page = send(served, method, path)
        assert status == 409 and "<p role=" in page
    assert request_of(store, run).state is RequestState.SUPERSEDED


def test_a_link_to_a_run_that_is_elsewhere(served: Serving, store: SqlStore) -> None:
    """A link to a run that was moved or removed is refused."""
    run, gone = waiting(store), waiting(store)
    paths = [link(served, request_of(store, each)) for each in (run, gone)]
    (served.state / "moved").mkdir()
    (served.state / "moved" / run.id).write_text("s3://elsewhere")
    store.request_cancel(gone.id)
    store.remove(gone.id)
    for path in paths:
        assert send(served, "POST", path)[0] == 409
    assert request_of(store, run).state is RequestState.OPEN


def test_a_link_fits_only_what_was_shown(served: Serving, store: SqlStore) -> None:
    """A link for another call, or for the same number with another end, is refused. A call that is
    not stored completely cannot be allowed, even by a valid link."""
    run = waiting(store)
    request = request_of(store, run)
    for other in (
        replace(request, sha256="0" * 64),
        replace(request, expires=request.expires + 1),
        replace(request, number=2),
    ):
        assert send(served, "POST", link(served, other))[0] == 409
    assert request_of(store, run).state is RequestState.OPEN
    long = waiting(store, size=1_000_000)
    status, page = send(served, "POST", link(served, request_of(store, long)))
    assert status == 409 and "only be refused" in page
    assert send(served, "POST", link(served, request_of(store, long), DENY))[0] == 200


# --- in notices


CHANNEL = Channel(name="team", kind=ChannelKind.WEBHOOK, url="http://127.0.0.1:1", links=True)


def test_a_notice_has_links(settings: Any) -> None:
    """A channel that is configured with links gets them, other channels do not, and the outbox
    never contains them. If the request is answered before the notice is sent, there are none."""
    from perdure.wiring import open_engine

    engine = open_engine(settings, {"HOME": "/nonexistent"})
    sent: list[tuple[str, Notice]] = []
    both = (CHANNEL, msgspec.structs.replace(CHANNEL, name="quiet", links=False))
    notifier = Notifier(
        engine, both, print, lambda name: "", lambda channel, notice: sent.append((channel.name, notice)),
        linking(engine.store, engine.state, engine.redactor, PUBLIC),
    )  # fmt: skip
    notifier.round()
    run = waiting(engine.store, count=2)
    notifier.round()
    bodies = {name: msgspec.json.decode(each.body, type=NoticeBody) for name, each in sent}
    answers = bodies["team"].data.answers
    assert not bodies["quiet"].data.answers and [each.request for each in answers] == [1, 2]
    assert {each.event for _, each in sent} == {NoticeEvent.NEEDS_YOU}
    text = text_of(sent[0][1], bodies["team"])
    assert f"Allow it once: {answers[0].allow}" in text and f"Refuse it: {answers[1].deny}" in text
    key = link_key(engine.state)
    found = verified(answers[0].allow.removeprefix(f"{PUBLIC}/link/"), key)
    assert found == link_to(engine.store.requests(run.id)[0], ALLOW, "team")
    assert all("/link/" not in each.body for each in engine.store.notices())
    engine.store.answer(run.id, 1, ALLOW, "", "ada")
    engine.store.answer(run.id, 2, DENY, "", "ada")
    assert (
        linking(engine.store, engine.state, engine.redactor, PUBLIC)(CHANNEL, sent[0][1])
        is sent[0][1]
    )
    assert (
        linking(engine.store, engine.state, engine.redactor, "")(CHANNEL, sent[0][1]) is sent[0][1]
    )
    engine.store.close()


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    from perdure.config.files import load

    return load({"HOME": str(tmp_path), "PERDURE_STATE": str(tmp_path / "state")}, tmp_path)


def test_the_key(tmp_path: Path) -> None:
    """The key is made once, and only its owner can read it. A key that others can read, or that is
    damaged, is not used."""
    assert link_key(tmp_path) == b""
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: link_key(tmp_path, make=True), range(16)))
    (key,) = keys
    file = tmp_path / "link-key"
    assert len(key) == 32 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    file.chmod(0o640)
    with pytest.raises(StoreError, match="read by others"):
        link_key(tmp_path)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        link_key(tmp_path)


def test_the_setting() -> None:
    """A channel has links only if its table says so."""
    table = {"url": "https://example.com/", "secret_file": "/s"}
    assert [each.links for each in channels({"a": table, "b": table | {"links": True}})] == [
        False,
        True,
    ]
    with pytest.raises(ValueError, match="true or false"):
        channels({"a": table | {"links": "yes"}})
