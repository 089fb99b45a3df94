"""Limits of the server: slow senders, the data in memory at once, a failing store, and one bad
delivery among many."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from perdure import store as stores
from perdure.errors import StoreError
from perdure.model import Token, TokenScope
from perdure.model.forge.deliveries import Accepted, Arrived, Forge, PayloadReading
from perdure.model.forge.sources import Source
from perdure.server import sockets as listening
from perdure.server import webhooks
from perdure.server.api import verbs
from perdure.server.application import application
from perdure.server.dashboard import sign_in as signing
from perdure.server.principal import Principals, new_token
from perdure.server.proxies import Proxies
from perdure.server.sockets import RunningServer, address, bound, is_public
from perdure.server.webhooks import WebhookIntake, Writer
from perdure.store.sql import SqlStore
from tests.forges import payloads
from tests.forges.payloads import SECRET
from tests.web.serving import answered

Accept = Callable[[Sequence[Arrived]], Sequence[Accepted]]
Start = Callable[..., int]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(stores.open(tmp_path / "perdure.db")) as found:
        yield found


@pytest.fixture
def start(store: SqlStore) -> Iterator[Start]:
    """Start a server in this process, and return its port."""
    with ExitStack() as stack:

        def begin(
            accept: Accept = store.accept,
            problems: Sequence[str] = (),
            body_s: float = 60.0,
            routes: Sequence[BaseRoute] = (),
            head_s: float = 60.0,
            sockets: Sequence[socket.socket] = (),
            public_url: str = "",
            proxies: Sequence[str] = (),
        ) -> int:
            sockets = list(sockets) or bound("127.0.0.1", 0)
            writer = stack.enter_context(Writer(accept))
            desk = WebhookIntake(
                {"hub": (Source("hub", Forge.GITHUB), (SECRET,))}, writer, lines.append, body_s
            )
            principals = Principals(store, store)
            hosts = ["perdure.example.com"]
            served = application(
                desk,
                lambda: problems,
                hosts,
                principals,
                [*routes, *signing.routes(principals, public_url)],
                Proxies(proxies),
            )
            stack.enter_context(RunningServer(served, sockets, Proxies(proxies), head_s))
            return int(sockets[0].getsockname()[1])

        lines: list[str] = []
        yield begin


def post(port: int, number: int = 0) -> tuple[int, dict[str, object]]:
    body = payloads.derived("github", "push", lambda found: found.update(numbered=number))
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=90)) as connection:
        connection.request(
            "POST", "/webhooks/hub", body, payloads.headers(Forge.GITHUB, "push", body)
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("first", [b"", b"POST /webhooks/hub HTTP/1.1\r\nHost: local"])
def test_a_slow_head(start: Start, first: bytes) -> None:
    """A client that sends nothing, or only a part of a request's head, is disconnected."""
    with socket.create_connection(("127.0.0.1", start(head_s=0.2)), timeout=90) as connection:
        connection.sendall(first)
        assert answered(connection) == b""


def test_a_slow_head_after_a_request(start: Start) -> None:
    """A client that got an answer and then sends only a part of its next head is disconnected,
    too."""
    sockets = bound("127.0.0.1", 0)
    for each in sockets:
        each.listen()
    with socket.create_connection(sockets[0].getsockname(), timeout=90) as connection:
        # This is sent before the server begins, so the first head is in time, however slow this
        # machine is.
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        start(head_s=0.2, sockets=sockets)
        answer = connection.recv(65536)
        connection.sendall(b"GET /h")
        assert b"200 OK" in answer + answered(connection)


def test_a_slow_body(start: Start) -> None:
    """A client that does not finish its body gets 408 and is disconnected. Nothing of the body is
    stored."""
    port = start(body_s=0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=90) as connection:
        connection.sendall(
            b"POST /webhooks/hub HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            b"application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert answered(connection).startswith(b"HTTP/1.1 408")


def test_a_slow_form(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without a sign-in cannot hold a connection with a form that does not end."""
    monkeypatch.setattr(verbs, "BODY_S", 0.2)
    with socket.create_connection(("127.0.0.1", start()), timeout=90) as connection:
        connection.sendall(
            b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            b"application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\nt"
        )
        assert answered(connection).startswith(b"HTTP/1.1 408")


async def endless(request: Request) -> Response:
    async def said() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    return StreamingResponse(said())


def listeners(
    stack: ExitStack, port: int, count: int, source: str = "127.0.0.1"
) -> list[socket.socket]:
    """Open connections from an address, each with a request for a stream, whose answer does not
    end."""
    found = []
    for _ in range(count):
        each = stack.enter_context(
            socket.create_connection(("127.0.0.1", port), timeout=90, source_address=(source, 0))
        )
        each.sendall(b"GET /static/endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert each.recv(12) == b"HTTP/1.1 200"
        found.append(each)
    return found


def test_more_connections_than_that(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the limit is reached and all connections are being answered, new ones are closed at
    once, and the others continue. A connection that waits for its next request is closed to make
    room."""
    monkeypatch.setattr(listening, "CONNECTIONS_MOST", 2)
    port = start(routes=[Route("/static/endless", endless)])
    with ExitStack() as stack:
        (first,) = listeners(stack, port, 1)
        idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=90))
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        (second,) = listeners(stack, port, 1)
        assert answered(idle).endswith(b'{"ok":true}'), "it was closed in favor of the second"
        third = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=90))
        assert answered(third) == b""
        assert all(b"one" in each.recv(65536) for each in (first, second))


def test_one_address_does_not_take_every_place(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address may have only a limited number of connections. Another address can still
    connect."""
    monkeypatch.setattr(listening, "PER_ADDRESS_MOST", 2)
    monkeypatch.setattr(Proxies, "is_near", lambda self, address: False)
    port = start(routes=[Route("/static/endless", endless)])
    with ExitStack() as stack:
        listeners(stack, port, 2)
        third = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=90))
        assert answered(third) == b""
        assert listeners(stack, port, 1, "127.0.0.2")


def sign_in(port: int, token: str, **headers: str) -> tuple[int, str]:
    """Sign in. Return the status, and the cookie that the browser gets."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=90)) as connection:
        said = {"content-type": "application/x-www-form-urlencoded"} | {
            name.replace("_", "-"): each for name, each in headers.items()
        }
        connection.request("POST", "/sign-in", f"token={token}", said)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("set-cookie", "")


def test_the_cookie_behind_a_proxy_with_tls(start: Start, store: SqlStore) -> None:
    """A browser with https gets a cookie that is sent only over https. A trusted proxy, or the
    public address, tells perdure that https is used."""
    secret, sha256 = new_token()
    store.add_token(Token(name="me", scope=TokenScope.READ, created=0), sha256)
    plain, public = start(), start(public_url="https://perdure.example.com")
    behind = start(proxies=["127.0.0.0/8"])
    assert "secure" in sign_in(public, secret, host="perdure.example.com")[1].lower()
    assert "secure" in sign_in(behind, secret, x_forwarded_proto="https")[1].lower()
    for port, headers in (
        (plain, {"x_forwarded_proto": "https"}),
        (public, {"host": "localhost"}),
        (behind, {}),
    ):
        status, cookie = sign_in(port, secret, **headers)
        assert status == 303 and cookie and "secure" not in cookie.lower()


def test_people_behind_one_proxy_are_told_apart(start: Start, store: SqlStore) -> None:
    """Failed sign-ins are counted by the address that a trusted proxy names, and not by the proxy's
    own address."""
    port = start(proxies=["127.0.0.1"])
    codes = [
        sign_in(port, f"wrong-{number}", x_forwarded_for="198.51.100.7, 203.0.113.9")[0]
        for number in range(21)
    ]
    assert codes == [401] * 20 + [429]
    assert sign_in(port, "wrong-a", x_forwarded_for="203.0.113.9, 198.51.100.7")[0] == 401
    spoofed = start()
    codes = [
        sign_in(spoofed, f"wrong-{number}", x_forwarded_for=f"203.0.113.{number}")[0]
        for number in range(21)
    ]
    assert codes == [401] * 20 + [429], "nobody's headers are believed without the setting"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9:4711, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, nonsense, 10.0.0.2", "10.0.0.2"),
        ("::ffff:10.0.0.1", "[2001:db8::1]:99", "2001:db8::1"),
        ("10.0.0.1", "", "10.0.0.1"),
    ],
)
def test_the_address_behind_proxies(peer: str, forwarded: str, client: str) -> None:
    """The client's address is the last one in the list that is not a trusted proxy. A client can
    invent all addresses before that one."""
    assert Proxies(["10.0.0.0/24"]).client(peer, forwarded) == client


def test_too_much_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the bodies that are in memory exceed the limit, the sender of another one is asked to
    retry. When there is room again, it is accepted."""
    monkeypatch.setattr(webhooks, "HELD_MOST", 10)
    port = start()
    status, said = post(port)
    assert status == 503 and "send it again" in str(said["error"])
    monkeypatch.undo()
    assert post(port)[0] == 202


def test_a_store_that_fails(start: Start, store: SqlStore) -> None:
    """A delivery that could not be stored is answered with 503 and not acknowledged. When it is
    sent again, it is stored."""
    failing = True

    def accept(arrived: Sequence[Arrived]) -> Sequence[Accepted]:
        if failing:
            raise StoreError("The disk is full")
        return store.accept(arrived)

    port = start(accept)
    assert post(port) == (503, {"error": "The delivery could not be stored; send it again"})
    assert store.inbox() == []
    failing = False
    assert post(port)[0] == 202
    assert len(store.inbox()) == 1


def test_not_ready(start: Start) -> None:
    """If the server is not ready, /readyz answers 503 with the reason. /healthz answers 200 as long
    as the process runs. Deliveries are still stored."""
    port = start(problems=["The disk is nearly full"])
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=90)) as connection:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (
            503,
            {"ready": False, "problems": ["The disk is nearly full"]},
        )
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
    assert post(port)[0] == 202


def test_health_beside_slow_requests(start: Start) -> None:
    """Health, readiness and webhooks are answered, however many requests wait in threads."""
    gate, waiting = threading.Event(), list[int]()

    def wait() -> None:
        waiting.append(1)
        assert gate.wait(90)

    async def slow(request: Request) -> Response:
        await run_in_threadpool(wait)
        return Response()

    def ask(path: str) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=90)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    port = start(routes=[Route("/static/slow", slow)])
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(ask, "/static/slow") for _ in range(50)]
        try:
            # Starlette has 40 threads for all handlers that are not asynchronous.
            while len(waiting) < 40:
                time.sleep(0.02)
            assert (ask("/healthz"), ask("/readyz"), post(port)[0]) == (200, 200, 202)
        finally:
            gate.set()
        assert {each.result() for each in asked} == {200}


def test_one_bad_among_many(store: SqlStore) -> None:
    """If one delivery cannot be stored, the others of its transaction still are. Deliveries that
    waited together are stored in one transaction."""
    batches: list[int] = []

    def accept(arrived: Sequence[Arrived]) -> Sequence[Accepted]:
        batches.append(len(arrived))
        return store.accept(arrived)

    async def keep(writer: Writer) -> list[Accepted | BaseException]:
        bodies = [f'{{"number": {number}}}' for number in range(6)] + ["\ud800"]
        return await asyncio.gather(
            *(writer.keep(_arrived(body)) for body in bodies), return_exceptions=True
        )

    # Deliveries that arrive before the writer's thread begins are stored together.
    writer = Writer(accept)

    async def both() -> list[Accepted | BaseException]:
        task = asyncio.create_task(keep(writer))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with writer:
            return await task

    answers = asyncio.run(both())
    assert [isinstance(each, Accepted) for each in answers] == [True] * 6 + [False]
    assert batches == [7, 1, 1, 1, 1, 1, 1, 1]
    assert len(store.inbox()) == 6


def _arrived(body: str) -> Arrived:
    digest = hashlib.sha256(body.encode("utf-8", "replace")).hexdigest()
    return Arrived(
        source="hub",
        id=digest,
        forge=Forge.GITHUB,
        event="push",
        sha256=digest,
        body=body,
        reading=PayloadReading(None, "nothing"),
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:8420", ("::1", 8420)),
        ("localhost:80", ("localhost", 80)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    """HOST:PORT is accepted, with brackets around IPv6."""
    assert address(text) == found


@pytest.mark.parametrize(
    "text", ["", "8420", ":8420", "a:", "a:b", "::1:80", "a:70000", "a b:1", "[x"]
)
def test_no_addresses(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="HOST:PORT"):
        address(text)


def test_what_is_public() -> None:
    """A socket on loopback is not public; one on all addresses is."""
    for host, public in (("127.0.0.1", False), ("0.0.0.0", True)):
        sockets = bound(host, 0)
        try:
            assert is_public(sockets) is public
        finally:
            for each in sockets:
                each.close()
