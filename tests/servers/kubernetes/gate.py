"""A gate before the API server, for a client that is to meet the troubles of networks and of API servers.

A client is given `kubeconfig` of the gate in place of its own. What the gate does to whom is chosen by the test while the client works:
- `deafen`: connections that there are now stay open and say nothing any more; new ones work. The half-open watch of a NAT that forgot.
- `answer`: the next requests that match are answered with a status and reach nobody, or (`after=True`) are done and answered all the same.
- `end_watches`, `expire_watches`: watches end as they may at any time, or with the error that their version is too old (410).
- `shut`, `open`: nothing passes, and nothing is closed.
`seen` has every request that came, in their order.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.servers.kubernetes.cluster import Cluster

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 422: "Invalid", 429: "TooManyRequests"}
KEPT = ("content-type", "retry-after", "warning", "audit-id", "content-encoding")
Connection = tuple[str, int]


@dataclass
class Rule:
    """`left` more requests whose method and path match are answered with `status`."""

    status: int
    method: str
    path: re.Pattern[str]
    left: int
    after: bool


@dataclass(frozen=True)
class Arrival:
    """One that came: `path` has no query; `client` is the beginning of the user agent."""

    method: str
    path: str
    watch: bool
    client: str


class Gate:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.seen: list[Arrival] = []
        self._rules: list[Rule] = []
        self._connections: set[Connection] = set()
        self._deaf: set[Connection] = set()
        self._age = 0
        self._farewell = ""
        self._is_open = True
        self._is_over = False
        app = Starlette(routes=[Route("/{path:path}", self._pass, methods=METHODS)], lifespan=self._last)
        settings = uvicorn.Config(
            app, host="127.0.0.1", port=0, lifespan="on", log_level="critical", access_log=False, timeout_graceful_shutdown=1,
            ssl_certfile=str(cluster.plan.ca_file), ssl_keyfile=str(cluster.plan.key_file),
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        trust = ssl.create_default_context(cafile=str(cluster.plan.ca_file))
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=50)
        timeout = httpx2.Timeout(30.0, read=None)
        self._client = httpx2.AsyncClient(base_url=cluster.access.server, verify=trust, timeout=timeout, limits=limits, trust_env=False)

    def start(self) -> Gate:
        self._thread.start()
        self.cluster.until(lambda: self._server.started, "the gate is there")
        self.port = int(self._server.servers[0].sockets[0].getsockname()[1])
        return self

    def close(self) -> None:
        self._is_over = True
        self._server.should_exit = True
        self._thread.join()

    def kubeconfig(self, account: Path) -> Path:
        """The same account by way of the gate."""
        found = json.loads(account.read_text())
        found["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.port}"
        path = account.with_name(f"gate-{self.port}-{account.name}")
        path.touch(mode=0o600)
        path.write_text(json.dumps(found))
        return path

    # --- what is done to clients ---------------------------------------------------------------------------------

    def deafen(self) -> None:
        self._deaf |= self._connections

    def answer(self, status: int, path: str, *, method: str = ".*", times: int = 1, after: bool = False) -> Rule:
        """`path` and `method` are regular expressions for all of it; `left` of what is returned counts down to 0."""
        rule = Rule(status, method, re.compile(path), times, after)
        self._rules.append(rule)
        return rule

    def end_watches(self) -> None:
        self._farewell, self._age = "", self._age + 1

    def expire_watches(self) -> None:
        error = json.dumps({"type": "ERROR", "object": _status(410, "too old resource version")})
        self._farewell, self._age = f"{error}\n", self._age + 1

    def shut(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True

    def counts(self) -> Counter[tuple[str, str]]:
        """Requests by method and path, a watch with `WATCH` for its method."""
        return Counter(("WATCH" if each.watch else each.method, each.path) for each in self.seen)

    @asynccontextmanager
    async def _last(self, app: Starlette) -> AsyncIterator[None]:
        async with self._client:
            yield
        # A client that is still there would be waited for.
        for each in list(self._server.server_state.connections):
            if each.transport is not None:
                each.transport.abort()
        await asyncio.sleep(0.05)

    # --- how -----------------------------------------------------------------------------------------------------

    async def _pass(self, request: Request) -> Response:
        assert request.client is not None
        connection = (request.client.host, request.client.port)
        self._connections.add(connection)
        is_watch = request.query_params.get("watch") in ("1", "true")
        client = request.headers.get("user-agent", "").split("/")[0]
        self.seen.append(Arrival(request.method, request.url.path, is_watch, client))
        await self._audible(connection)
        rule = self._rule(request)
        if rule and not rule.after:
            return _refusal(rule.status)
        headers = [(name, value) for name, value in request.headers.items() if name not in ("host", "content-length", "connection")]
        body = await request.body()
        sent = self._client.build_request(request.method, _target(request), headers=headers, content=body or None)
        try:
            answer = await self._client.send(sent, stream=True)
        except httpx2.HTTPError:
            return _refusal(503)
        if rule:
            await answer.aclose()
            return _refusal(rule.status)
        kept = {name: value for name, value in answer.headers.items() if name in KEPT}
        streams = is_watch or request.query_params.get("follow") == "true"
        if answer.is_success and streams:
            return StreamingResponse(self._stream(answer, connection), answer.status_code, kept)
        content = b"".join([chunk async for chunk in answer.aiter_raw()])
        await self._audible(connection)
        return Response(content, answer.status_code, kept)

    async def _stream(self, answer: httpx2.Response, connection: Connection) -> AsyncIterator[bytes]:
        """Looks up every now and then, as a watch may be silent for long."""
        age, is_whole = self._age, True
        chunks = answer.aiter_raw()
        coming: asyncio.Task[bytes] | None = None
        try:
            while not self._is_over:
                coming = coming or asyncio.ensure_future(anext(chunks))  # type: ignore[arg-type]
                done, _ = await asyncio.wait([coming], timeout=0.05)
                await self._audible(connection)
                if self._age != age and is_whole:
                    yield self._farewell.encode()
                    return
                if done:
                    content, coming = coming.result(), None
                    is_whole = content.endswith(b"\n")
                    yield content
        except (StopAsyncIteration, httpx2.HTTPError):
            return
        finally:
            if coming is not None:
                coming.cancel()
            await answer.aclose()

    async def _audible(self, connection: Connection) -> None:
        while (connection in self._deaf or not self._is_open) and not self._is_over:
            await asyncio.sleep(0.05)

    def _rule(self, request: Request) -> Rule | None:
        for rule in self._rules:
            if rule.left and rule.path.fullmatch(request.url.path) and re.fullmatch(rule.method, request.method):
                rule.left -= 1
                return rule
        return None


@contextmanager
def gate(cluster: Cluster) -> Iterator[Gate]:
    """One for a while."""
    found = Gate(cluster).start()
    try:
        yield found
    finally:
        found.close()


def _target(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _refusal(status: int) -> Response:
    return Response(json.dumps(_status(status, "the test says so")), status, media_type="application/json")


def _status(code: int, message: str) -> dict[str, object]:
    reason = REASONS.get(code, "InternalError" if code == 500 else "ServiceUnavailable")
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code}
