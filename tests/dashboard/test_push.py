"""Push messages in a real browser. The browser is added on the page; a run needs a person; the
message comes through a push service on loopback; the service worker shows it; a click opens the
run's page.

Only the browser's connection to the push service of its vendor is replaced, because that service
cannot be reached from here. The browser subscribes at this test's push service, and each message
that arrives there is given to the service worker as the browser would do it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from perdure import store as stores
from perdure.server.dashboard.devices import browser_of
from perdure.server.dashboard.pages import CSP
from perdure.store.sql import SqlStore
from perdure.testing.stores.samples import claimed, submit
from tests.dashboard.browsing import Looking
from tests.dashboard.test_doors import Door
from tests.notices.kills import ASKS
from tests.notices.pushing import PushService, decoded
from tests.web.serving import Serving

CONFIG = """
[serve]
push_contact = "ops@example.com"
push_hosts = ["{host}"]
"""
SUBSCRIBE = """(() => {
  let subscribed = null;
  const subscription = (key) => ({
    endpoint: %(endpoint)s,
    options: { applicationServerKey: key.buffer || key },
    unsubscribe: async () => { subscribed = null; return true; },
    toJSON: () => ({ endpoint: %(endpoint)s, keys: %(keys)s }),
  });
  PushManager.prototype.subscribe = async function (options) {
    if (!options.userVisibleOnly) throw new Error("userVisibleOnly");
    subscribed = subscription(options.applicationServerKey);
    sessionStorage.setItem("subscribed", "yes");
    return subscribed;
  };
  PushManager.prototype.getSubscription = async function () {
    const key = document.querySelector("[data-server-key]")?.dataset.serverKey || "";
    if (!subscribed && sessionStorage.getItem("subscribed")) {
      const plain = atob(key.replace(/-/g, "+").replace(/_/g, "/"));
      subscribed = subscription(Uint8Array.from(plain, (each) => each.charCodeAt(0)));
    }
    return subscribed;
  };
})()"""
SHOWN = """async () => {
  const registration = await navigator.serviceWorker.ready;
  const found = await registration.getNotifications();
  return found.map(({ title, body, tag, data }) => ({ title, body, tag, data }));
}"""


@pytest.fixture(scope="module")
def pushing(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Serving, PushService, str]]:
    """Run a server and a push service that it may reach. Yield both with a reader's token."""
    home = tmp_path_factory.mktemp("pushing")
    with closing(PushService(home)) as service:
        config = CONFIG.format(host=service.host)
        serving = Serving(home, config, SSL_CERT_FILE=str(service.file))
        token = serving.token("read")
        yield serving.start(), service, token
        serving.stop()


@pytest.fixture
def store(pushing: tuple[Serving, PushService, str]) -> Iterator[SqlStore]:
    found = stores.open(pushing[0].state / "perdure.db")
    yield found
    found.close()


def opened(window: Looking, service: PushService) -> Page:
    """Open the page in a browser whose push service is this one, and that allows messages."""
    values = {"endpoint": json.dumps(service.endpoint), "keys": json.dumps(service.browser.keys)}
    window.context.add_init_script(SUBSCRIBE % values)
    window.context.grant_permissions(["notifications"], origin=window.base)
    return window.open("/notify")


def deliver(window: Looking, page: Page, data: str) -> None:
    """Give a message to the service worker, as the browser does when its push service sends one."""
    session = window.context.new_cdp_session(page)
    found: list[dict[str, Any]] = []
    session.on("ServiceWorker.workerRegistrationUpdated", lambda event: found.extend(event["registrations"]))  # fmt: skip
    session.send("ServiceWorker.enable")
    while not found:
        page.wait_for_timeout(20)
    session.send(
        "ServiceWorker.deliverPushMessage",
        {"origin": window.base, "registrationId": found[-1]["registrationId"], "data": data},
    )
    session.detach()


def test_from_the_button_to_the_page_of_the_run(
    pushing: tuple[Serving, PushService, str], store: SqlStore, look: Callable[..., Looking]
) -> None:
    """One press of the button adds the browser. A message names the run that needs a person, and is
    shown once even if it comes twice. A click opens the run. A test message comes too."""
    serving, service, token = pushing
    window = look(serving, token)
    page = opened(window, service)
    page.uncheck("text=a run needs me")
    page.check("text=a run needs me")
    page.fill("[name=labels]", "")
    page.fill("[name=name]", "<b>my</b> phone")
    page.click("text=Notify me on this device")
    expect(page.locator(".told")).to_have_text("This device gets messages now.")
    expect(page.locator(".devices li")).to_have_count(1)
    expect(page.locator(".devices b")).to_have_text("<b>my</b> phone")
    expect(page.locator(".devices .this")).to_be_visible()
    expect(page.locator("#push button")).to_have_text("Change this device")
    assert window.nodes() == []
    (device,) = store.devices()
    assert device.endpoint == service.endpoint and device.wishes.count("needs_you") == 1
    service.server_key = device.server_key

    run = submit(store)
    store.finish(claimed(store, run), ASKS)
    serving.until(lambda: service.topics, "the message is sent")
    (message,) = service.delivered()
    assert service.wrong == [] and message["path"] == f"/runs/{run.name}"
    deliver(window, page, json.dumps(message))
    deliver(window, page, json.dumps(message))
    serving.until(lambda: page.evaluate(SHOWN), "it is shown")
    (shown,) = page.evaluate(SHOWN)
    assert shown["title"] == message["title"] and shown["body"] == message["text"]
    assert shown["tag"] == run.name and shown["data"]["url"] == f"{window.base}/runs/{run.name}"

    # A click needs the notifications of a desktop, which a headless browser does not have. So the
    # worker gets the same event from the test. It may open a window only after a real click, so the
    # call is recorded instead.
    (worker,) = window.context.service_workers
    assert worker.url == f"{window.base}/static/push-worker.js"
    said = worker.evaluate(
        """async () => {
          const went = [];
          Clients.prototype.openWindow = async (url) => { went.push(url); };
          const [notification] = await self.registration.getNotifications();
          self.dispatchEvent(new NotificationEvent("notificationclick", { notification }));
          for (let tries = 0; !went.length && tries < 200; tries++) await new Promise((each) => setTimeout(each, 20));
          return [went, (await self.registration.getNotifications()).length];
        }"""
    )
    assert said == [[f"{window.base}/runs/{run.name}"], 0]
    assert window.open(message["path"]).locator("h1").is_visible()

    page = window.open("/notify")
    page.click("text=Test")
    expect(page.locator(".told")).to_contain_text("accepted the test message")
    (tried,) = service.delivered()
    assert tried["path"] == "/notify" and "test" in tried["title"]
    page.click("text=Remove")
    expect(page.locator(".devices li")).to_have_count(0)
    assert store.devices() == []


def test_the_worker_trusts_no_message(
    pushing: tuple[Serving, PushService, str], look: Callable[..., Looking]
) -> None:
    """The worker does not trust a message: it shows only text, and opens only a page of this
    dashboard."""
    serving, service, token = pushing
    window = look(serving, token)
    page = opened(window, service)
    page.click("text=Notify me on this device")
    expect(page.locator(".devices li")).to_have_count(1)
    hostile = [
        "not json", "null", "[]", '"text"', "", '{"title": 5, "text": null, "path": ["/x"], "tag": {}}',
        json.dumps({"id": "1", "title": "<img src=x onerror=alert(1)>", "text": "x" * 3000, "path": "https://evil.example/", "tag": "1"}),
        json.dumps({"id": "2", "title": "t", "path": "//evil.example/a", "tag": "2"}),
        json.dumps({"id": "3", "title": "t", "path": "/\\evil.example/a", "tag": "3"}),
        json.dumps({"id": "4", "title": "t", "path": "javascript:alert(1)", "tag": "4"}),
        json.dumps({"id": "5", "title": "t", "path": "/\t/evil.example", "tag": "5"}),
        json.dumps({"id": "6", "title": "t", "path": "/runs/a-run", "tag": "6"}),
    ]  # fmt: skip
    for each in hostile:
        deliver(window, page, each)
    serving.until(lambda: len(page.evaluate(SHOWN)) == 7, "all are shown")
    shown = {each["tag"]: each for each in page.evaluate(SHOWN)}
    assert shown["perdure"]["title"] == "perdure"
    assert len(shown["1"]["body"]) == 500 and shown["1"]["title"].startswith("<img")
    urls = {tag: each["data"]["url"] for tag, each in shown.items()}
    assert urls.pop("6") == f"{window.base}/runs/a-run"
    assert set(urls.values()) == {f"{window.base}/"}
    # Signing out removes this browser from the devices.
    page.click("text=sign out")
    page.wait_for_url("**/sign-in")
    with closing(stores.open(serving.state / "perdure.db")) as store:
        assert store.devices() == []


def test_a_browser_stays_while_it_is_used(
    pushing: tuple[Serving, PushService, str], store: SqlStore, look: Callable[..., Looking]
) -> None:
    """Opening any page renews the browser's subscription for another month, or says that the server
    no longer knows the browser. A browser may refuse messages."""
    serving, service, token = pushing
    window = look(serving, token)
    page = opened(window, service)
    with page.expect_response("**/notify/renew"):  # The next page sends it.
        page.click("text=Notify me on this device")
    expect(page.locator(".devices li")).to_have_count(1)
    before = store.devices()[0].expires
    with page.expect_response("**/notify/renew") as renewed:
        page.evaluate("sessionStorage.removeItem(Object.keys(sessionStorage).find((each) => each.startsWith('perdure push')))")  # fmt: skip
        page.goto("/")
    assert renewed.value.json() == {"known": True}
    assert store.devices()[0].expires > before
    page = window.open("/notify")
    window.context.clear_permissions()
    page.click("text=Change this device")
    expect(page.locator("#push-said")).to_contain_text("does not allow messages")
    # The server forgets the browser. The bell of every page shows this.
    store.remove_device(store.devices()[0].id)
    window.context.grant_permissions(["notifications"], origin=window.base)
    page.evaluate("sessionStorage.removeItem(Object.keys(sessionStorage).find((each) => each.startsWith('perdure push')))")  # fmt: skip
    page.goto("/")
    expect(page.locator(".bell.lost")).to_have_text(re.compile("gets no messages any more"))


def test_the_form_is_checked(pushing: tuple[Serving, PushService, str], store: SqlStore) -> None:
    """A form may contain anything. A push service at a private address, an invalid key and an
    unknown event are refused. Nobody sees or removes the devices of another person."""
    serving, service, token = pushing
    door = Door(serving, token)
    good = {"csrf": door.csrf(), "endpoint": service.endpoint, "name": "\u202ex\n" * 50, "on_done": "yes", "labels": "team=web, kind = fix",
            "quiet": "22:00-07:00", "roles": "dev", **service.browser.keys}  # fmt: skip
    for change, said in (
        ({"endpoint": "https://10.0.0.5/a"}, "add it to serve_push_hosts"),
        ({"endpoint": "https://127.0.0.1:1/a"}, "add it to serve_push_hosts"),
        ({"endpoint": "http://127.0.0.1/a"}, "expected the https address"),
        ({"endpoint": f"{service.endpoint}{'x' * 2000}"}, "expected the https address"),
        ({"endpoint": ""}, "expected the https address"),
        ({"p256dh": "B" + "A" * 86}, "no point of the curve"),
        ({"auth": "AAAA"}, "16 bytes"),
        ({"on_done": ""}, "Nothing was chosen"),
        ({"quiet": "22-7"}, "quiet of this device"),
        ({"labels": "team"}, "is not a label"),
        ({"labels": "x" * 600}, "too long"),
        ({"roles": "x" * 600}, "too long"),
    ):
        status, _, page = door.ask("POST", "/notify/add", urlencode(good | change))
        assert status == 422 and said in page and "/send/" not in page, (change, page)
    assert door.ask("POST", "/notify/add", urlencode(good | {"csrf": "x"}))[0] == 403
    assert store.devices() == []
    assert door.ask("POST", "/notify/add", urlencode(good))[0] == 303
    (device,) = store.devices()
    assert json.loads(device.wishes) == {"events": ["done"], "labels": {"team": "web", "kind": "fix"}, "roles": ["dev"], "quiet": "22:00-07:00"}  # fmt: skip
    assert len(device.name) <= 60 and "\u202e" not in device.name and "\n" not in device.name
    page = door.ask("GET", "/notify")[2]
    assert "team=web" in page and service.endpoint not in page and device.auth not in page
    other = Door(serving, serving.token("admin"))
    csrf = {"csrf": other.csrf()}
    assert device.name not in other.ask("GET", "/notify")[2]
    for verb in ("remove", "test"):
        path = f"/notify/{device.id}/{verb}"
        assert other.ask("POST", path, urlencode(csrf))[0] == 404
        assert door.ask("GET", path)[0] == 405
    assert len(store.devices()) == 1
    renewing = urlencode({**csrf, "endpoint": service.endpoint})
    assert other.ask("POST", "/notify/renew", renewing)[2] == '{"known":false}'
    service.status = 410
    mine = urlencode({"csrf": good["csrf"]})
    status, _, said = door.ask("POST", f"/notify/{device.id}/test", mine)
    assert status >= 400 and "was removed: it answered 410" in said and store.devices() == []
    service.status = 201


def test_what_is_served(pushing: tuple[Serving, PushService, str]) -> None:
    """The page has the same policy as every page. The worker may load nothing from elsewhere, and
    may serve all pages. The private key is in no answer."""
    serving, _, token = pushing
    door = Door(serving, token)
    status, headers, page = door.ask("GET", "/notify")
    assert (status, headers["content-security-policy"]) == (200, CSP)
    key = page.partition('data-server-key="')[2].partition('"')[0]
    assert len(decoded(key)) == 65 and decoded(key)[0] == 4
    headers = Door(serving).ask("GET", "/static/push-worker.js")[1]
    assert headers["service-worker-allowed"] == "/" and headers["cache-control"] == "no-cache"
    assert headers["content-security-policy"] == "default-src 'none'"
    assert "javascript" in headers["content-type"]
    assert 'rel="manifest" href="/static/manifest.json"' in page
    assert json.loads(Door(serving).ask("GET", "/static/manifest.json")[2])["scope"] == "/"
    assert "service-worker-allowed" not in Door(serving).ask("GET", "/static/keys.js")[1]
    secret = (serving.state / "push-key").read_text().splitlines()[1]
    assert secret not in page and secret not in serving.said()


def test_a_server_without_push(full: tuple[Serving, str], look: Callable[..., Looking]) -> None:
    """Without push messages in the configuration, the page says how to enable them. There is no
    bell, and no browser can be added."""
    window = look(*full)
    page = window.open("/notify")
    expect(page.locator("main")).to_contain_text("push_contact")
    assert page.locator(".bell").count() == 0 and page.locator("form#push").count() == 0
    door = Door(*full)
    assert door.ask("POST", "/notify/add", urlencode({"csrf": door.csrf()}))[0] == 409
    assert not (full[0].state / "push-key").exists()


def test_a_phone_shows_the_page(
    pushing: tuple[Serving, PushService, str], look: Callable[..., Looking]
) -> None:
    serving, service, token = pushing
    window = look(serving, token, width=390)
    page = opened(window, service)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".bell").is_visible() and page.locator("#push button").is_enabled()


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Linux; Android 16) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140 Mobile Safari/537.36", "Chrome on Android"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605 Version/19 Mobile Safari/604", "Safari on iPhone"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140 Safari/537.36 Edg/140", "Edge on Windows"),
        ("", "A browser"),
    ],
)  # fmt: skip
def test_the_name_of_a_browser(agent: str, name: str) -> None:
    assert browser_of(agent) == name
