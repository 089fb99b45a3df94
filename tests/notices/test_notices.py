"""Notices reach people by the channels that they choose: signed webhooks, mail, services of
Apprise."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from perdure import store as stores
from perdure.cli.server.doctor import _channels
from perdure.config.files import load
from perdure.engine.notices import Notifier, senders
from perdure.engine.notices import notifier as notifying
from perdure.engine.notices.senders import NoticeRefused, PartlyRefused, send
from perdure.errors import ConfigError
from perdure.model import Condition, RunState, TaskRun, TaskSpec, Usage
from perdure.model.codec import decode
from perdure.model.events import RunFinished, RunQueued
from perdure.model.notices import (
    Channel,
    ChannelKind,
    Notice,
    NoticeBody,
    NoticeEvent,
    NoticeState,
    channels,
)
from perdure.rules.notification import body_of, due_at, event_of, subject_of, text_of, wants
from perdure.store.sql import SqlStore
from perdure.testing.stores.requests import waiting
from perdure.testing.stores.samples import claimed, submit
from perdure.wiring import open_engine
from tests.notices.kills import ASKS, DONE
from tests.notices.receivers import SECRET, Hook, Post
from tests.patience import PATIENCE_S
from tests.servers.postgres import Server

HOSTILE = "Fix \u202elogin\x1b[31m <script>alert(1)</script>\r\nBcc: eve@example.com"


def run_of(**more: Any) -> TaskRun:
    spec = TaskSpec(prompt="p", title=HOSTILE, rule="dev", labels={"team": "web"})
    given = {"state": RunState.FAILED, "created": 0, "updated": 0, "spec": spec} | more
    return TaskRun(id="a" * 32, name="plain-trout", **given)


def notice(event: NoticeEvent = NoticeEvent.FAILED, **more: Any) -> Notice:
    body = body_of(event, RunFinished(state="failed", reason="it broke"), run_of(), Usage(), 5, "")
    values = {"channel": "one", "line": 1, "event": event, "run": "a", "at": 5, "body": body}
    return Notice(id="ntc_1", **(values | more))


@pytest.fixture
def hook() -> Iterator[Hook]:
    with closing(Hook()) as found:
        yield found


@pytest.fixture
def post() -> Iterator[Post]:
    with closing(Post()) as found:
        yield found


@pytest.fixture
def secret(tmp_path: Path) -> str:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return str(tmp_path / "secret")


# --- the configuration
# ------------------------------------------------------------------------------------------------


def test_channels_are_read() -> None:
    hook, mail, chat = channels(
        {
            "team": {"url": "https://example.com/hook/", "secret_file": "/s", "labels": {"a": "b"}},
            "ada": {
                "server": "smtps://ada@mail.example.com", "password_file": "/p", "from": "p@example.com", "to": "ada@example.com",
                "events": ["needs_you"], "quiet": "22:00-07:00",
            },
            "chat": {"service_file": "/c", "roles": ["dev"]},
        }
    )  # fmt: skip
    assert (hook.kind, hook.events) == (ChannelKind.WEBHOOK, ("needs_you", "over_budget", "failed", "done"))  # fmt: skip
    assert (mail.recipients, mail.events) == (("ada@example.com",), ("needs_you",))
    assert (chat.kind, chat.secret_file, chat.roles) == (ChannelKind.SERVICE, "/c", ("dev",))
    assert "ada@example.com" in str(mail)


MAIL = {"server": "smtp://mail.example.com", "from": "p@example.com", "to": ["a@example.com"]}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("x", r"\[notify.NAME\], or the same as JSON"),
        pytest.param("[" * 100_000, "the same as JSON", id="deep"),
        ("[]", r"a table \[notify.NAME\]"),
        ({"Team!": {}}, "not a valid channel name"),
        ({"a": 1}, "expected a table"),
        ({"a": {}}, "exactly one of url, server, service_file"),
        ({"a": {"url": "https://x", "server": "smtp://x"}}, "exactly one"),
        ({"a": {"url": "http://example.com", "secret_file": "/s"}}, "must be https"),
        ({"a": {"url": "https://u:p@example.com", "secret_file": "/s"}}, "without user"),
        ({"a": {"url": "https://example.com"}}, "secret_file of a must be an absolute path"),
        ({"a": {"url": "https://example.com", "secret_file": "s"}}, "absolute path"),
        ({"a": {"url": "https://example.com", "secret": "s"}}, "no setting 'secret'"),
        ({"a": MAIL | {"to": []}}, "mail addresses"),
        ({"a": MAIL | {"to": ["a@b\nBcc: c@d.example"]}}, "mail addresses"),
        ({"a": MAIL | {"from": ""}}, "mail addresses"),
        ({"a": MAIL | {"server": "imap://x"}}, "smtp://user@"),
        ({"a": MAIL | {"server": "smtp://x:99999"}}, "smtp://user@"),
        ({"a": MAIL | {"server": "smtp://u@x"}}, "password_file, or neither"),
        ({"a": MAIL | {"events": ["everything"]}}, "no event 'everything'"),
        ({"a": MAIL | {"quiet": "22-7"}}, "22:00-07:00"),
        ({"a": MAIL | {"quiet": "25:00-07:00"}}, "22:00-07:00"),
        ({"a": MAIL | {"quiet": "07:00-07:00"}}, "22:00-07:00"),
        ({"a": MAIL | {"labels": ["web"]}}, "labels of a"),
        ({"a": MAIL | {"roles": [1]}}, "roles of a"),
    ],
)
def test_a_bad_table_is_refused(table: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        channels(table)


def test_a_repository_names_no_channel(tmp_path: Path) -> None:
    (tmp_path / "perdure.toml").write_text('[notify.a]\nservice_file = "/x"\n')
    with pytest.raises(ConfigError) as found:
        load({"HOME": str(tmp_path)}, tmp_path)
    assert "notify" in found.value.problems[0]


# --- who is told of what
# ------------------------------------------------------------------------------------------------


def test_what_a_change_means_to_people() -> None:
    asks = run_of(conditions=(Condition(type="needs_person", message="which?", at=1),))
    parked = run_of(conditions=(Condition(type="needs_input", message="may I?", at=1),))
    assert event_of("run_finished", RunFinished(state="succeeded"), run_of()) is NoticeEvent.DONE
    assert event_of("run_finished", RunFinished(state="failed"), run_of()) is NoticeEvent.FAILED
    assert event_of("run_finished", RunFinished(state="failed"), asks) is NoticeEvent.NEEDS_YOU
    spent = RunFinished(state="failed", reason="budget_spent: $5 of $5")
    assert event_of("run_finished", spent, asks) is NoticeEvent.OVER_BUDGET
    assert event_of("run_finished", RunFinished(state="cancelled"), run_of()) is None
    queued = RunQueued(reason="rate_limited", run_after=10**9)
    assert event_of("run_queued", queued, run_of()) is NoticeEvent.WAITING
    assert event_of("run_queued", queued, parked) is NoticeEvent.NEEDS_YOU
    assert event_of("person_needed", None, asks) is NoticeEvent.NEEDS_YOU
    assert event_of("person_needed", None, run_of()) is None


def test_a_channel_has_labels_roles_and_events() -> None:
    every = Channel(name="a", kind=ChannelKind.MAIL)
    assert wants(every, NoticeEvent.DONE, run_of())
    assert not wants(every, NoticeEvent.WAITING, run_of())
    for more, is_told in (
        ({"labels": (("team", "web"),)}, True),
        ({"labels": (("team", "web"), ("a", "b"))}, False),
        ({"roles": ("dev", "eye")}, True),
        ({"roles": ("eye",)}, False),
    ):
        assert wants(msgspec.structs.replace(every, **more), NoticeEvent.DONE, run_of()) is is_told


@pytest.mark.parametrize(
    ("quiet", "now", "due"),
    [
        ("", "2026-01-01T23:00", "2026-01-01T23:00"),
        ("22:00-07:00", "2026-01-01T21:59", "2026-01-01T21:59"),
        ("22:00-07:00", "2026-01-01T22:00", "2026-01-02T07:00"),
        ("22:00-07:00", "2026-01-01T03:00", "2026-01-01T07:00"),
        ("22:00-07:00", "2026-01-01T07:00", "2026-01-01T07:00"),
        ("12:00-13:00", "2026-01-01T12:30", "2026-01-01T13:00"),
    ],
)
def test_quiet_hours(quiet: str, now: str, due: str) -> None:
    channel = Channel(name="a", kind=ChannelKind.MAIL, quiet=quiet)
    assert due_at(channel, datetime.fromisoformat(now)) == datetime.fromisoformat(due)


def test_a_hostile_title_stays_on_its_line() -> None:
    one = notice()
    body = decode(one.body, NoticeBody)
    subject, text = subject_of(one, body), text_of(one, body)
    assert "\n" not in subject and "\u202e" not in text and "\x1b" not in text
    assert subject.startswith("Fix login <script>") and "dev (claude) has failed" in subject
    assert text.splitlines()[1] == "it broke" and "perdure show plain-trout" in text


# --- the channels
# ------------------------------------------------------------------------------------------------


def test_a_webhook_is_signed(hook: Hook, secret: str) -> None:
    channel = Channel(name="one", kind=ChannelKind.WEBHOOK, url=hook.url, secret_file=secret)
    send(channel, notice())
    (body,) = hook.bodies
    assert body["type"] == "run.failed" and body["data"]["message"] == "it broke"
    assert body["data"]["run"]["role"] == "dev" and hook.seen == {"ntc_1": 1}
    hook.status = 503
    with pytest.raises(NoticeRefused, match="one answered 503"):
        send(channel, notice())
    hook.status = 302
    with pytest.raises(NoticeRefused, match="one answered 302"):
        send(channel, notice())
    for wrong in ("whsec_é", "whsec_", "", "a plain password", "whsec_YWJj", SECRET[6:]):
        Path(secret).write_text(wrong)
        with pytest.raises(NoticeRefused, match="not a signing secret"):
            send(channel, notice())
    Path(secret).unlink()
    with pytest.raises(NoticeRefused, match="is missing"):
        send(channel, notice())


def test_nobody_listens(secret: str) -> None:
    for more in (
        {"kind": ChannelKind.WEBHOOK, "url": "http://127.0.0.1:1/x"},
        {"kind": ChannelKind.MAIL, "server": "smtp://127.0.0.1:1", "sender": "p@example.com", "recipients": ("a@example.com",)},
    ):  # fmt: skip
        with pytest.raises(NoticeRefused, match="does not answer: ConnectionRefusedError"):
            send(Channel(name="one", secret_file=secret, **more), notice())


def test_a_mail(post: Post) -> None:
    people = ("ada@example.com", "ben@example.com")
    channel = Channel(
        name="one", kind=ChannelKind.MAIL, server=post.url, sender="p@example.com", recipients=people
    )  # fmt: skip
    send(channel, notice())
    (mail,) = post.mails
    assert mail["Subject"].startswith("Fix login") and mail["Bcc"] is None
    assert (
        mail["Message-ID"] == "<ntc_1@example.com>" and mail["Auto-Submitted"] == "auto-generated"
    )
    assert "it broke" in mail.get_content()
    post.refused = {"ben@example.com"}
    with pytest.raises(PartlyRefused, match=r"refused ben@example\.com"):
        send(channel, notice())
    post.refused = set(people)
    with pytest.raises(NoticeRefused, match="refused every recipient"):
        send(channel, notice())


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_a_service_of_apprise(hook: Hook, tmp_path: Path) -> None:
    file = tmp_path / "services"
    channel = Channel(name="one", kind=ChannelKind.SERVICE, secret_file=str(file))
    file.write_text(f"# the team\n{hook.url.replace('http', 'json')}\n")
    send(channel, notice())
    (body,) = hook.bodies
    assert body["title"].startswith("Fix login <script>") and "it broke" in body["message"]
    hook.status = 500
    with pytest.raises(NoticeRefused, match="did not accept the notice"):
        send(channel, notice())
    for text, said in (("", "holds no address"), ("nonsense://x y", "does not know")):
        file.write_text(text)
        with pytest.raises(NoticeRefused, match=said):
            send(channel, notice())


# --- the outbox
# ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], SqlStore]]:
    url = str(tmp_path / "perdure.db")
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        url = server.database(migrated=True)
    made: list[SqlStore] = []

    def again() -> SqlStore:
        made.append(stores.open(url))
        return made[-1]

    yield again
    for each in made:
        each.close()


def test_the_outbox_is_filled_once(opened: Callable[[], SqlStore]) -> None:
    """Two hosts read the same records of the journal, and only one of them stores the notices. Only
    one sender at a time may hold a notice."""
    one, other = opened(), opened()
    assert one.notices_seen() is None
    assert one.put_notices(None, 3, ()) and not other.put_notices(None, 3, ())
    assert one.put_notices(3, 5, [notice()]) and not other.put_notices(3, 5, [notice()])
    assert one.notices_seen() == 5
    assert one.put_notices(5, 6, [notice()])  # Storing the same notice again changes nothing.
    (due,) = one.notices_due()
    held = one.hold_notice(due.id, 60)
    assert held is not None and one.hold_notice("none", 60) is None
    later = msgspec.structs.replace(held, due=one.now() + 60_000, tries=1, reason="no")
    assert one.settle_notice(later) and one.notices_due() == []
    assert [(each.tries, each.reason) for each in one.notices()] == [(1, "no")]
    done = msgspec.structs.replace(held, state=NoticeState.SENT)
    assert one.settle_notice(done) and not one.settle_notice(done)
    assert one.thin_notices(one.now() + 1) == 1 and one.notices() == []


@pytest.fixture
def settings(tmp_path: Path, hook: Hook, secret: str) -> Iterator[Any]:
    chosen = load({"HOME": str(tmp_path), "PERDURE_DISK_BALLAST": "0"}, Path("/"))
    table = {"one": {"url": hook.url, "secret_file": secret}}
    return replace(chosen, notify=channels(table))


def test_from_the_end_of_a_run_to_a_person(settings: Any, hook: Hook) -> None:
    engine = open_engine(settings, {"HOME": "/nonexistent", "A_TOKEN": "hunter2hunter2hunter2"})
    store, said = engine.store, list[str]()
    store.finish(claimed(store, submit(store)), DONE)  # before any channel asked for notices
    notifier = Notifier(engine, settings.notify, said.append, lambda name: f"https://p/runs/{name}")
    notifier.round()
    store.finish(claimed(store, submit(store)), DONE)
    asking = submit(store, TaskSpec(prompt="Use hunter2hunter2hunter2 and go."))
    store.finish(claimed(store, asking), ASKS)
    notifier.round()
    notifier.round()
    assert [body["type"] for body in hook.bodies] == ["run.done", "run.needs_you"]
    told = hook.bodies[1]["data"]
    assert told["message"] == "which one?" and told["run"]["page"].endswith(f"/{asking.name}")
    assert "hunter2" not in json.dumps(hook.bodies)
    # A person is needed although no attempt ended.
    store.record_outside_attempt(
        asking.id, [], Condition(type="needs_person", message="push by hand", at=0)
    )
    notifier.round()
    assert [body["type"] for body in hook.bodies][2:] == ["run.needs_you"]
    # An agent asks, and its run waits for the answer.
    waiting(store)
    notifier.round()
    assert [body["type"] for body in hook.bodies][3:] == ["run.needs_you"]
    assert hook.bodies[3]["data"]["message"] == "it asks"
    # The receiver fails: the notice waits, and the reason is logged once.
    hook.status = 500
    store.finish(claimed(store, submit(store)), DONE)
    notifier.round()
    notifier.round()
    kept = [each for each in store.notices() if each.state is NoticeState.WAITING]
    assert [(each.tries, each.reason) for each in kept] == [(1, "one answered 500")]
    assert kept[0].due > store.now() and said == ["one answered 500"]
    # This channel does not exist any more.
    hook.status = 204
    store.finish(claimed(store, submit(store)), DONE)
    notifier._follow()
    Notifier(engine, (), said.append).round()
    assert store.notices(1)[0].state is NoticeState.GIVEN_UP
    store.close()


def test_a_channel_without_an_answer_holds_up_nobody(
    settings: Any, hook: Hook, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that does not answer is tried once a minute, however many notices wait for it.
    Notices to other channels are sent meanwhile."""
    monkeypatch.setattr(senders, "TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        table = {"a": {"url": url}, "one": {"url": hook.url}}
        chosen = channels({name: each | {"secret_file": secret} for name, each in table.items()})
        engine = open_engine(settings, {"HOME": "/nonexistent"})
        store, said = engine.store, list[str]()
        notifier = Notifier(engine, chosen, said.append)
        notifier.round()
        for _ in range(4):
            store.finish(claimed(store, submit(store)), DONE)
        notifier.round()
        silent.setblocking(False)
        assert connections(silent) == 1
    assert len(hook.bodies) == 4
    waits = [each for each in store.notices() if each.state is NoticeState.WAITING]
    assert [(each.channel, each.tries) for each in waits] == [("a", 1)] * 4
    assert said == ["a does not answer: TimeoutError"]
    store.close()


def test_the_last_round_tries_nothing_again(
    settings: Any, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the process ends, a notice whose try has failed waits for the next process. A new notice
    is still sent."""
    monkeypatch.setattr(notifying, "AGAIN_S", 0.0)
    monkeypatch.setattr(notifying, "REST_S", 0.0)
    engine = open_engine(settings, {"HOME": "/nonexistent"})
    store, asked = engine.store, threading.Event()
    notifier = Notifier(engine, settings.notify, lambda line: None)

    def before(number: int) -> None:
        """Let the process end, and another run too, while the first notice is being refused."""
        if number == 1:
            asked.set()
            while not notifier._rounds.is_over():
                time.sleep(0.01)
            store.finish(claimed(store, submit(store)), DONE)
            hook.status = 204

    hook.status, hook.before = 500, before
    store.put_notices(None, 0, ())
    store.finish(claimed(store, submit(store)), DONE)
    with notifier:
        assert asked.wait(PATIENCE_S)
    assert [each.state for each in store.notices()] == [NoticeState.SENT, NoticeState.WAITING]
    assert (len(hook.bodies), hook.refused) == (1, 1)
    store.close()


def connections(server: socket.socket) -> int:
    """Return the number of connections that a server has accepted for its program."""
    found = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            found += 1
    return found


def test_doctor_looks_at_the_channels(settings: Any, tmp_path: Path) -> None:
    assert [state for _, state, _ in _channels(settings)] == ["ok"]
    (tmp_path / "secret").write_text("")
    ((_, state, said),) = _channels(settings)
    assert state == "bad" and said.endswith("secret is empty")
    (tmp_path / "secret").unlink()
    ((_, state, said),) = _channels(settings)
    assert state == "bad" and "is missing: No such file" in said
