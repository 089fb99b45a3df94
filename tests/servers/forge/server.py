"""The HTTP server of the small forge: it finds the login of a token, routes requests, pages lists
with a `Link` header, and plays the faults that a test has requested."""

from __future__ import annotations

import json
import re
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from tests.servers.forge.state import State


@dataclass(frozen=True)
class Request:
    """A request that arrived, and the answer to it."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    login: str
    status: int
    answer: Any


class Answered(Exception):
    """Raised by a route to send an error answer instead of a value."""

    def __init__(self, status: int, value: Any = None) -> None:
        super().__init__(status)
        self.status, self.value = status, value


@dataclass
class Asked:
    """The request as a route gets it."""

    state: State
    login: str
    query: dict[str, str]
    body: Any
    url: str
    """The address of the forge itself."""


@dataclass
class Raw:
    """An answer that is not JSON."""

    text: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Page:
    """A list that is served in pages. `size`: name of the parameter for the length of a page.
    `most`: maximum length of a page."""

    items: Sequence[Any]
    size: str
    most: int = 50


Route = tuple[str, str, Callable[..., Any]]
"""Method, pattern of the path below the API's prefix, and the function that answers: a value (200),
(status, value), or a Page."""


@dataclass
class Fault:
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    break_off: bool = False
    """Whether the connection is closed without an answer. With `done` it is closed after the
    request was carried out."""
    done: bool = False


class SmallForge:
    """A forge of one dialect, as a context manager. The dialect is a module with `PREFIX`,
    `ROUTES`, `asker` (finds the owner of a token) and `dressed` (changes an answer before it is
    sent)."""

    def __init__(
        self,
        dialect: Any,
        state: State | None = None,
        port: int = 0,
        check: Callable[[Request], None] | None = None,
    ) -> None:
        self.state = state or State()
        self.dialect = dialect
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.wrong: list[str] = []
        self._check = check
        self._lock = threading.RLock()
        forge = self

        class One(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def go(self) -> None:
                forge._answer(self)

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(One, f"do_{method}", One.go)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self._server = Server(("127.0.0.1", port), One)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> SmallForge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert not self.wrong, "\n".join(self.wrong)

    def fail(
        self,
        status: int = 500,
        *,
        times: int = 1,
        body: bytes = b"{}",
        break_off: bool = False,
        done: bool = False,
        **headers: str,
    ) -> None:
        """Answer the next requests with this status. A header is given as `retry_after="3"`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults += [Fault(status, named, body, break_off, done)] * times

    def asked(self, method: str, pattern: str) -> list[Request]:
        """Return the requests that came so far with this method and a path that matches the
        pattern."""
        return [
            each
            for each in self.requests
            if each.method == method and re.search(pattern, each.path)
        ]

    def _answer(self, one: BaseHTTPRequestHandler) -> None:
        length = int(one.headers.get("content-length") or 0)
        raw = one.rfile.read(length)
        with self._lock:
            fault = self.faults.pop(0) if self.faults else None
            if fault is None or fault.done:
                try:
                    status, value, headers = self._route(one, raw)
                except Exception:
                    self.wrong.append(traceback.format_exc())
                    status, value, headers = 500, {}, {}
        if fault is not None and fault.break_off:
            one.close_connection = True
            return
        if fault is not None and not fault.done:
            _send(one, fault.status, fault.body, fault.headers)
        elif isinstance(value, Raw):
            _send(one, status, value.text.encode(), {"content-type": "text/plain", **headers})
        else:
            _send(
                one,
                status,
                b"" if value is None else json.dumps(value).encode(),
                {"content-type": "application/json", **headers},
            )

    def _route(self, one: BaseHTTPRequestHandler, raw: bytes) -> tuple[int, Any, dict[str, str]]:
        parts = urlsplit(one.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        body = json.loads(raw) if raw else None
        login = self.state.tokens.get(self.dialect.asker(one.headers), "")
        path = parts.path.removeprefix(self.dialect.PREFIX)
        headers: dict[str, str] = {}
        try:
            if not login:
                raise Answered(401, {"message": "invalid username, password or token"})
            value: Any = self._found(
                one.command, path, Asked(self.state, login, query, body, self.url)
            )
            status, value = value if isinstance(value, tuple) else (200, value)
            if isinstance(value, Raw):
                self.requests.append(
                    Request(one.command, path, query, body, login, status, value.text)
                )
                self._held(self.requests[-1])
                return status, value, value.headers
            if isinstance(value, Page):
                value, headers = _page(value, query, f"http://another.invalid{parts.path}")
        except Answered as answered:
            status, value = (
                answered.status,
                answered.value or {"message": f"answered with {answered.status}"},
            )
        request = Request(one.command, path, query, body, login, status, value)
        self._held(request)
        try:
            status, value = self.dialect.dressed(one.command, path, status, value)
        except AssertionError as error:
            self.wrong.append(f"{request.method} {path}: {error}")
        self.requests.append(replace(request, status=status, answer=value))
        return status, value, headers

    def _held(self, request: Request) -> None:
        """Record the request as wrong if the forge's published description does not have it."""
        try:
            if self._check is not None:
                self._check(request)
        except AssertionError as error:
            self.wrong.append(f"{request.method} {request.path}: {error}")

    def _found(self, method: str, path: str, asked: Asked) -> Any:
        for verb, pattern, answer in self.dialect.ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                return answer(asked, *map(unquote, found.groups()))
        raise Answered(404)


def _page(page: Page, query: dict[str, str], url: str) -> tuple[list[Any], dict[str, str]]:
    """Return one page, and the `Link` header that all three forges send. The host in the header is
    not the forge's, and a client must not follow it."""
    number = int(query.get("page", "1"))
    size = min(int(query.get(page.size, "30")), page.most)
    rest = len(page.items) > number * size
    link = (
        f'<{url}?{urlencode({**query, "page": number + 1})}>; rel="next", <{url}?page=99>; '
        'rel="last"'
    )
    return list(page.items[(number - 1) * size : number * size]), {"link": link} if rest else {}


def _send(one: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    one.send_response(status)
    for name, value in headers.items():
        one.send_header(name, value)
    one.send_header("content-length", str(len(body)))
    one.end_headers()
    one.wfile.write(body)
