"""A real `perdure serve` gets requests that no forge, browser or program would send. For each it
answers with a sentence or closes the connection, and never has an internal error."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forges import payloads
from tests.forges.payloads import Forge
from tests.web.serving import Serving, answered

ASKED = b"Host: localhost\r\nContent-Type: application/json\r\n"

CRAFTED = {
    "two ways to end a body": b"POST /webhooks/hub HTTP/1.1\r\n%bContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /webhooks/hub HTTP/1.1\r\n%bContent-Length: 2\r\nContent-Length: 4\r\n\r\n{}{}",
    "a length below nothing": b"POST /webhooks/hub HTTP/1.1\r\n%bContent-Length: -1\r\n\r\n",
    "a length that is none": b"POST /webhooks/hub HTTP/1.1\r\n%bContent-Length: 0x10\r\n\r\n",
    "a piece of no size": b"POST /webhooks/hub HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "another coding": b"POST /webhooks/hub HTTP/1.1\r\n%bTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another host in the line": b"GET http://evil.example/ HTTP/1.1\r\n%b\r\n",
    "a folded header": b"GET / HTTP/1.1\r\n%bX-A: b\r\n c: d\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\n%bX-A: b\x00c\r\n\r\n",
    "NUL in the address": b"GET /\x00 HTTP/1.1\r\n%b\r\n",
    "up and out": b"GET /static/../../../../../../etc/passwd HTTP/1.1\r\n%b\r\n",
    "up and out, encoded": b"GET /static/%%2e%%2e/%%2e%%2e/%%2e%%2e/perdure.db HTTP/1.1\r\n%b\r\n",
    "a name that climbs": b"POST /webhooks/..%%2fhub HTTP/1.1\r\n%bContent-Length: 2\r\n\r\n{}",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\n%b\r\n",
    "CONNECT": b"CONNECT internal:22 HTTP/1.1\r\n%b\r\n",
    "an upgrade": b"GET /api/v1/events HTTP/1.1\r\n%bConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "a host with a user": b"GET /healthz HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n",
    "a host that goes on": b"GET /healthz HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n",
    "a forwarded host": b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\n\r\n",
    "a binary line": bytes(range(1, 256)) + b"\r\n\r\n",
}


def status(answer: bytes) -> int:
    """Return the status of an answer, or 0 if the connection was closed without one."""
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("attack", CRAFTED)
def test_crafted_requests(serving: Serving, attack: str) -> None:
    """Each request is refused or its connection closed. Nothing is stored, no answer reveals
    anything of the disk or of another request, and the server continues."""
    before = len(serving.inbox())
    raw = CRAFTED[attack]
    with serving.raw() as connection:
        connection.sendall(raw % ASKED if b"%b" in raw else raw)
        connection.shutdown(1)
        said = answered(connection)
    assert status(said) == 0 or 400 <= status(said) < 500, said[:300]
    assert b"root:" not in said and b"SQLite" not in said and said.count(b"HTTP/1.1 ") <= 1
    assert serving.send("/healthz", b"", {}, "GET") == (200, {"ok": True})
    assert len(serving.inbox()) == before


def test_requests_of_any_shape(serving: Serving) -> None:
    """Requests with random methods, addresses, headers and bodies, most of them nearly valid, cause
    no internal error."""
    chance = random.Random(17)
    body = payloads.raw("github", "push")
    good = payloads.headers(Forge.GITHUB, "push", body)
    paths = [
        "/webhooks/hub",
        "/api/v1/runs",
        "/api/v1/events",
        "/",
        "/sign-in",
        "/metrics",
        "/static/x",
        "/runs/%ff",
        "/?before=1.x&state=\u00e9",
    ]
    texts = [
        "",
        "\u20ac",
        "x" * 9000,
        "%00",
        "' OR 1=1 --",
        "<script>",
        "../..",
        "-1",
        "9" * 400,
        "\t",
    ]
    for _ in range(150):
        headers = {name: value for name, value in good.items() if chance.random() < 0.8}
        for _ in range(chance.randrange(4)):
            name = chance.choice(
                [
                    *good,
                    "authorization",
                    "cookie",
                    "origin",
                    "sec-fetch-site",
                    "last-event-id",
                    "accept",
                    "range",
                    "expect",
                ]
            )
            headers[name] = chance.choice(texts)
        path = chance.choice(paths) + chance.choice(
            ["", "", "/", "?q=" + chance.choice(texts), "/" + chance.choice(texts)]
        )
        cut = chance.choice([body, body[: chance.randrange(len(body))], b"", b"\xff" * 10])
        lines = [
            f"{chance.choice(['GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'PATCH', 'OPTIONS', 'get'])} "
            f"{path} HTTP/1.1",
            "Host: localhost",
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(cut)}", "Connection: close", "", ""]
        with serving.raw() as connection:
            connection.sendall("\r\n".join(lines).encode() + cut)
            connection.shutdown(1)
            said = answered(connection)
        assert status(said) < 500, (lines, said[:300])
    assert serving.send("/healthz", b"", {}, "GET") == (200, {"ok": True})


PRIVATE = {
    "https://169.254.169.254/a/b": "link-local",
    "https://10.0.0.1/a/b": "private",
    "https://127.0.0.1/a/b": "this machine's own",
    "https://localhost./a/b": "not a repository address",
    "https://git.example.com:8443/a/b": "it is not the default port",
    "https://[::1]/a/b": "not a repository address",
    "https://user:word@git.example.com/a/b": "credentials",
}


def test_tasks_in_the_private_network(
    serves: Callable[..., Serving], agents: dict[str, Path]
) -> None:
    """A task is refused before it is stored if its repository is on a server of the private network
    that the configuration does not name. This also holds for an admin."""
    serving = serves(PERDURE_CLAUDE=str(agents["claude"])).start()
    for token in (serving.token("dispatch"), serving.token("admin")):
        for repo, says in PRIVATE.items():
            got, said = serving.ask(
                "POST", "/api/v1/runs", token, {"prompt": "x", "agent": "claude", "repo": repo}
            )
            assert 400 <= got < 500 and says in said["detail"] and "word" not in said["detail"], (
                said
            )
        assert serving.ask("GET", "/api/v1/runs", token)[1]["runs"] == []
    good = {"prompt": "x", "agent": "claude", "repo": "https://git.example.com/a/b"}
    assert serving.ask("POST", "/api/v1/runs", token, good)[0] == 201
