"""Push messages to browsers: encrypted and signed as the standards say, sent only to servers that
may be reached, and only to people who may see the run."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from perdure import store as stores
from perdure.cli.runs.pool import devices_of, notifies
from perdure.cli.server.doctor import findings
from perdure.config.files import load
from perdure.engine.notices import Notifier, push
from perdure.engine.notices import notifier as notifying
from perdure.engine.notices.push import DeviceGone, PushSender
from perdure.engine.notices.senders import NoticeRefused
from perdure.errors import Conflict, StoreError
from perdure.model import TaskSpec, Token, TokenScope, Usage
from perdure.model.codec import decode
from perdure.model.events import RunFinished
from perdure.model.notices import (
    DEVICES_MOST,
    Notice,
    NoticeBody,
    NoticeEvent,
    NoticeState,
    PushDevice,
    check_endpoint,
    device_id,
)
from perdure.rules.notification import body_of, push_of
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import claimed, submit
from perdure.wiring import open_engine
from tests.notices.kills import ASKS, DONE
from tests.notices.pushing import PushService, Subscribed, decoded, subscribe
from tests.notices.test_notices import notice, run_of
from tests.servers.postgres import Server

CONTACT = "ops@example.com"


@pytest.fixture(scope="module")
def module_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PushService]:
    with closing(PushService(tmp_path_factory.mktemp("push"))) as found:
        yield found


@pytest.fixture
def service(module_service: PushService, monkeypatch: pytest.MonkeyPatch) -> PushService:
    """Return a push service whose certificate is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(module_service.file))
    module_service.status, module_service.slow_s = 201, 0.0
    for kept in (module_service.topics, module_service.waiting, module_service.headers):
        kept.clear()
    module_service.wrong.clear()
    return module_service


@pytest.fixture
def sender(tmp_path: Path, service: PushService) -> PushSender:
    found = PushSender(state=tmp_path / "state", contact=CONTACT, hosts=(service.host,))
    service.server_key = found.server_key()
    return found


def device_at(sender: PushSender, service: PushService, **more: Any) -> PushDevice:
    values = {
        "id": "d1", "person": "token:ada", "sign_in": "s", "name": "n", "endpoint": service.endpoint, "server_key": sender.server_key(),
        "public_key": service.browser.keys["p256dh"], "auth": service.browser.keys["auth"], "wishes": "{}",
    }  # fmt: skip
    return PushDevice(**(values | more))


# --- the message
# ------------------------------------------------------------------------------------------------


def test_the_example_of_the_standard() -> None:
    """The receiver of these tests decrypts the message of RFC 8291, appendix A."""
    private = int.from_bytes(decoded("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"))
    browser = Subscribed(
        ec.derive_private_key(private, ec.SECP256R1()), decoded("BTBZMqHH6r4Tts7J_aSIgg")
    )
    sealed = (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )  # fmt: skip
    assert browser.decrypt(decoded(sealed)) == b"When I grow up, I want to be a watermelon"


def test_a_message_is_small_and_plain() -> None:
    """A message has a title and a sentence as text, and the path of the run's page. It has no
    address of a forge, no cost and no link that gives an answer. It is small, however long and
    hostile the run's title is."""
    cause = RunFinished(state="failed", reason="\U0001f600<img src=x onerror=alert(1)>\n" * 99)
    run = run_of(spec=TaskSpec(prompt="p", title="\u202e\x1b[31m" + "<script>漢" * 99, link="https://forge.example/x/1"))  # fmt: skip
    body = body_of(NoticeEvent.FAILED, cause, run, Usage(), 5, "https://p.example/runs/x")
    one = notice(body=body)
    sent = push_of(one, decode(body, NoticeBody))
    found = json.loads(sent)
    assert len(sent) < 3000 and set(found) == {"id", "title", "text", "path", "tag"}
    assert found["path"] == "/runs/plain-trout" and found["id"] == "ntc_1"
    assert "\u202e" not in found["title"] and "\x1b" not in found["title"]
    assert "\n" not in found["text"] and "forge.example" not in str(found)
    assert found["text"].startswith("claude has failed: ") and len(found["text"]) <= 300


def test_a_message_arrives(sender: PushSender, service: PushService) -> None:
    """The browser decrypts a message with its own key. The signature is perdure's, and the topic is
    the notice's, so that a repeated message replaces the first one."""
    one = replace(notice(), id=f"ntc_{'0123456789abcdef' * 2}", at=int(time.time() * 1000))
    for _ in range(2):
        sender.send(device_at(sender, service), one)
    assert service.wrong == [] and len(service.headers) == 2
    headers = service.headers[0]
    assert headers["topic"] == "0123456789abcdef0123456789abcdef"
    assert headers["urgency"] == "normal" and 604_000 < int(headers["ttl"]) <= 604_800
    (found,) = service.delivered()
    assert found["title"].startswith("Fix login <script>")
    assert found["text"] == "dev (claude) has failed: it broke"
    sender.send(device_at(sender, service), notice(NoticeEvent.NEEDS_YOU))
    assert service.headers[-1]["urgency"] == "high"


def test_the_key_is_made_once_and_kept_secret(sender: PushSender) -> None:
    """The key's file has the mode 0600. A key file that others can read, or that is damaged, is
    refused."""
    file = sender.state / push.KEY
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert len(decoded(sender.server_key())) == 65 and file.read_bytes() == before
    assert "PRIVATE" not in repr(sender) and before.decode().splitlines()[1] not in repr(sender)
    file.chmod(0o644)
    with pytest.raises(StoreError, match="can be read by others"):
        sender.server_key()
    file.chmod(0o600)
    file.write_text("nonsense")
    with pytest.raises(StoreError, match="is damaged"):
        sender.server_key()


@pytest.mark.parametrize("status", [400, 403, 413, 429, 500, 503, 302])
def test_other_answers_are_tried_again(
    sender: PushSender, service: PushService, status: int
) -> None:
    """After any other answer the message is sent again later. A redirect is not followed."""
    service.status = status
    with pytest.raises(NoticeRefused, match=f"answered {status}") as caught:
        sender.send(device_at(sender, service), notice())
    assert not isinstance(caught.value, DeviceGone) and len(service.headers) == 1
    assert "/send/" not in str(caught.value), "the endpoint is a secret of the browser"


def test_a_server_that_dribbles(
    sender: PushSender, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends only a byte now and then does not block the sender."""
    monkeypatch.setattr(push, "WHOLE_S", 0.5)
    service.slow_s = 0.1
    began = time.monotonic()
    with pytest.raises(NoticeRefused, match="does not answer"):
        sender.send(device_at(sender, service), notice())
    assert time.monotonic() - began < 8


# --- where a message may go
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://push.example.com/a", "ftp://push.example.com/a", "https:///a", "https://a@push.example.com/a", "https://push.example.com/a#b",
        "https://push.example.com/a b", "https://push.example.com/a\r\nX: y", "https://push.example.com", "https://p.example/" + "a" * 1024, "",
        "//push.example.com/a", "https://push.example.com\\@evil/a", "https://push.example.com:port/a", "https://p\u00fcsh.example/a",
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_push_service(endpoint: str) -> None:
    with pytest.raises(ValueError, match="expected the https address"):
        check_endpoint(endpoint)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "this machine's own"), ("127.1.2.3", "this machine's own"), ("[::1]", "this machine's own"), ("10.0.0.5", "private"),
        ("192.168.1.1", "private"), ("169.254.169.254", "link-local"), ("[fe80::1]", "link-local"), ("[::ffff:10.0.0.5]", "private"),
        ("[64:ff9b::a00:5]", "private"), ("0.0.0.0", "not a server's"), ("push.example.com:8443", "not the default port"),
        ("100.64.0.1", "private"), ("[fd00::1]", "private"), ("224.0.0.1", "not a server's"),
    ],
)  # fmt: skip
def test_private_servers_are_refused(tmp_path: Path, service: PushService, host: str, why: str) -> None:  # fmt: skip
    """An address that is not public is refused when a browser is added, and again when a message is
    sent."""
    sender = PushSender(state=tmp_path, contact=CONTACT)
    device = device_at(sender, service, endpoint=f"https://{host}/a")
    check_endpoint(device.endpoint)
    with pytest.raises(ValueError, match=why):
        sender.check(device)
    with pytest.raises(NoticeRefused, match=why):
        sender.send(device, notice())


@pytest.mark.parametrize("host", ["localhost", "2130706433", "127.1", "0x7f.1", "0177.0.0.1"])
def test_a_name_of_a_private_server(
    sender: PushSender, service: PushService, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's name is resolved when a message is sent, and the connection goes to the address
    that was checked."""
    device = device_at(sender, service, endpoint=f"https://{host}/a")
    with pytest.raises(NoticeRefused, match=r"this machine's own|does not answer"):
        replace(sender, hosts=()).send(device, notice())
    with pytest.raises(NoticeRefused, match="add it to serve_push_hosts"):
        sender.send(device, notice())
    assert service.headers == []


def test_the_certificate_is_checked(
    sender: PushSender, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(NoticeRefused, match="SSLCertVerificationError"):
        sender.send(device_at(sender, service), notice())


@pytest.mark.parametrize(
    "more",
    [
        {"public_key": ""}, {"public_key": "AAAA"}, {"public_key": "B" + "A" * 86}, {"auth": "AAAA"}, {"auth": "A" * 9999},
        {"public_key": "é" * 87}, {"auth": "!!"},
    ],
)  # fmt: skip
def test_keys_that_are_none(sender: PushSender, service: PushService, more: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="the key"):
        sender.check(device_at(sender, service, **more))


# --- the store
# ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    url = str(tmp_path / "perdure.db")
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        url = server.database(migrated=True)
    found = stores.open(url)
    yield found
    found.close()


def of(person: str, number: int, sign_in: str, store: SqlStore, **more: Any) -> PushDevice:
    endpoint = f"https://push.example.com/{number}"
    values = {
        "id": device_id(person, endpoint), "person": person, "sign_in": sign_in, "name": "n", "endpoint": endpoint, "public_key": "k", "auth": "a",
        "server_key": "s", "wishes": '{"events": ["done"]}', "repositories": ("shop/*",), "labels": ("team=r*",), "expires": store.now() + 10**6,
    }  # fmt: skip
    return PushDevice(**(values | more))


def test_devices_live_as_long_as_their_sign_in_is_valid(store: SqlStore) -> None:
    """A browser belongs to a person who is signed in. It is removed together with the person's
    token, at a sign-out in that browser, and after a month. It stays when only the sign-in
    expires."""
    store.add_token(Token(name="ada", scope=TokenScope.READ, created=0), "1" * 64)
    for sign_in in ("s1", "s2"):
        store.sign_in("ada", sign_in, 3600)
    ben = Token(name="ben", scope=TokenScope.READ, created=0, kind="openid")
    store.sign_in_person(ben, "s3", 3600)
    one, two = of("token:ada", 1, "s1", store), of("token:ada", 2, "s2", store)
    for each in (one, two, of("openid:ben", 3, "s3", store)):
        store.put_device(each)
    with pytest.raises(Conflict, match="not signed in any more"):
        store.put_device(of("token:ada", 4, "nobody", store))
    found = store.devices()
    assert [each.person for each in found] == ["token:ada", "token:ada", "openid:ben"]
    assert found[0] == replace(one, added=found[0].added) and found[0].added > 0
    # If the same browser is added again, its choices change, and it is still one browser.
    store.put_device(replace(one, name="new", wishes='{"events": ["failed"]}'))
    assert [each.name for each in store.devices()] == ["new", "n", "n"]
    assert store.devices()[0].added == found[0].added
    # Another person signs in with that browser and adds it.
    store.put_device(of("openid:ben", 1, "s3", store))
    assert [each.person for each in store.devices()] == ["token:ada", "openid:ben", "openid:ben"]
    assert not store.renew_device(one) and store.renew_device(replace(two, sign_in="s1"))
    store.sign_out("s1")
    assert [each.person for each in store.devices()] == ["openid:ben", "openid:ben"]
    assert store.sign_out_person("ben") == 3 and store.devices() == []
    store.put_device(two)
    store.remove_token("ada")
    assert store.devices() == []


def test_a_person_has_few_devices(store: SqlStore) -> None:
    store.add_token(Token(name="ada", scope=TokenScope.READ, created=0), "1" * 64)
    store.sign_in("ada", "s1", 3600)
    for number in range(DEVICES_MOST):
        store.put_device(of("token:ada", number, "s1", store))
    with pytest.raises(Conflict, match="which is the maximum"):
        store.put_device(of("token:ada", 99, "s1", store))
    store.put_device(of("token:ada", 3, "s1", store))  # one of the browsers above, again
    assert len(store.devices()) == DEVICES_MOST
    assert store.remove_device(store.devices()[0].id) and not store.remove_device("none")
    store.put_device(of("token:ada", 99, "s1", store, expires=store.now() + 1))
    time.sleep(0.01)
    assert len(store.devices()) == DEVICES_MOST - 1, "it has expired"


# --- from the end of a run to a browser
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, service: PushService) -> Any:
    chosen = load({"HOME": str(tmp_path), "PERDURE_DISK_BALLAST": "0"}, Path("/"))
    return replace(chosen, serve_push_contact=CONTACT, serve_push_hosts=(service.host,))


def test_from_the_end_of_a_run_to_a_browser(
    settings: Any, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser gets the events that its person chose, from the moment when it was added. While
    the browser's server fails, nothing is sent to it. A browser that is gone is removed, and its
    other notices are given up."""
    monkeypatch.setattr(notifying, "AGAIN_S", 0.0)
    monkeypatch.setattr(notifying, "REST_S", 0.0)
    engine = open_engine(settings, {"HOME": "/nonexistent", "A_TOKEN": "hunter2hunter2hunter2"})
    store, said = engine.store, list[str]()
    devices = devices_of(engine.store, settings)
    assert devices is not None and notifies(settings)
    notifier = Notifier(engine, (), said.append, devices=devices)
    store.put_notices(None, 0, ())
    store.finish(claimed(store, submit(store)), ASKS)  # This happens before the browser was added.
    time.sleep(0.005)
    service.server_key = devices.sender.server_key()
    subscribe(store, service.server_key, service, events=["needs_you"], labels={"team": "web"})
    store.finish(claimed(store, submit(store)), ASKS)  # This run does not have the label.
    web = TaskSpec(prompt="Use hunter2hunter2hunter2 and go.", labels={"team": "web"})
    run = submit(store, web)
    store.finish(claimed(store, run), ASKS)
    store.finish(claimed(store, submit(store, web)), DONE)  # This event was not chosen.
    service.status = 503
    notifier.round()
    (kept,) = store.notices()
    assert (kept.state, kept.tries) == (NoticeState.WAITING, 1)
    assert kept.reason.endswith("answered 503") and said == [kept.reason]
    service.status = 201
    time.sleep(0.005)
    notifier.round()
    (found,) = service.delivered()
    assert found["path"] == f"/runs/{run.name}" and found["text"].endswith("which one?")
    assert "hunter2" not in str(found) and found["id"] == kept.id and service.wrong == []
    for status in (410, 201):
        service.status = status
        store.finish(claimed(store, submit(store, web)), ASKS)
        notifier.round()
    assert store.devices() == [] and service.delivered() == []
    assert store.notices(1)[0].state is NoticeState.GIVEN_UP
    assert [each.state for each in store.notices()].count(NoticeState.GIVEN_UP) == 1
    store.close()


def test_a_browser_gets_only_what_its_person_may_see(settings: Any, service: PushService) -> None:
    """The limits of a person's token apply to messages too, even if the person chose no labels."""
    engine = open_engine(settings, {"HOME": "/nonexistent"})
    store = engine.store
    store.put_notices(None, 0, ())
    devices = devices_of(engine.store, settings)
    assert devices is not None
    subscribe(store, devices.sender.server_key(), service, events=["done"])
    (own,) = store.devices()
    limited = replace(own, repositories=("shop/*",), labels=("team=red",))
    assert store.renew_device(limited)
    for labels in ({}, {"team": "blue"}, {"team": "red"}):
        for repo in ("https://git.example.com/shop/web", "https://git.example.com/vault/keys"):
            spec = TaskSpec(prompt=f"{repo} {labels}", labels=labels, repo=repo)
            store.finish(claimed(store, submit(store, spec)), DONE)
    Notifier(engine, (), print, devices=devices).round()
    (found,) = service.delivered()
    assert found["title"] == "https://git.example.com/shop/web {'team': 'red'}"
    store.close()


def test_a_failing_browser_holds_up_nobody(settings: Any, service: PushService) -> None:
    """If the server of a browser fails, it is tried once a minute, however many notices wait for
    that browser."""
    engine = open_engine(settings, {"HOME": "/nonexistent"})
    store = engine.store
    store.put_notices(None, 0, ())
    devices = devices_of(engine.store, settings)
    assert devices is not None
    subscribe(store, devices.sender.server_key(), service, events=["done"])
    service.status = 500
    for _ in range(5):
        store.finish(claimed(store, submit(store)), DONE)
    Notifier(engine, (), lambda line: None, devices=devices).round()
    assert len(service.headers) == 1
    assert {each.tries for each in store.notices()} == {1}
    # A key that cannot be used is reported as the reason, like any other.
    (devices.sender.state / push.KEY).chmod(0o644)
    one: Notice = store.notices(1)[0]
    with pytest.raises(NoticeRefused, match="can be read by others"):
        devices.send(one)
    store.close()


def test_another_key(sender: PushSender, service: PushService) -> None:
    """Nothing is sent to a browser that was added on a host with another key, because it could not
    verify the message."""
    device = device_at(sender, service, server_key="B" * 87)
    with pytest.raises(NoticeRefused, match="every host needs the same file push-key"):
        sender.send(device, notice())
    assert service.headers == []


def test_doctor_looks_at_push(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> tuple[str, str]:
        ((_, state, sentence),) = [each for each in findings(settings) if each[0] == "push"]
        return state, sentence

    assert said()[0] == "warn" and "https" in said()[1]
    settings = replace(settings, serve_public_url="https://perdure.example.com")
    assert said() == ("ok", f"push messages to browsers; contact {CONTACT}")
    monkeypatch.setattr(push, "LIBRARIES", ("no_such_library",))
    assert said()[0] == "bad" and "no_such_library is missing" in said()[1]


def test_late_imports() -> None:
    """A pool without browsers loads none of the libraries for push messages."""
    import subprocess
    import sys

    code = "import perdure.engine.notices, perdure.engine.notices.push, sys; print([n for n in ('cryptography','http_ece','joserfc') if n in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))  # fmt: skip
    assert done.stdout.strip() == "[]"
