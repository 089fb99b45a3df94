"""Builds the ASGI application from all routes and controls access to them. A request must name an
allowed host. Otherwise any web page could reach a service on loopback under a host name of its own
(DNS rebinding). A request must also be authenticated, except at the addresses listed in `guard`. A
GET changes nothing.

`routes` returns the routes that need authentication: the API, the dashboard and the metrics. The
route `GET /metrics` is for Prometheus. It needs a token with the scope `read` and without limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import version

from anyio import CapacityLimiter, to_thread
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.errors import PerdureError
from perdure.server import dashboard
from perdure.server.api.routes import api
from perdure.server.context import Parts
from perdure.server.guard import OWN_CHECKS, Guard
from perdure.server.principal import Principals, authenticated
from perdure.server.problems import Problem, problem
from perdure.server.proxies import Forwarded, Proxies
from perdure.server.webhooks import WebhookIntake, answer
from perdure.telemetry.metrics.exposition import MetricsPage

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
CHECKS_AT_ONCE = 2
"""Maximum number of readiness checks in progress at the same time. Further checks wait, without
delaying other requests."""
_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


def application(
    desk: WebhookIntake,
    problems: Callable[[], Sequence[str]],
    hosts: Sequence[str],
    principals: Principals | None = None,
    routes: Sequence[BaseRoute] = (),
    proxies: Proxies | None = None,
) -> Starlette:
    """Return the ASGI application. `problems` is a function that returns the reasons why no work
    can be accepted now, or nothing if work can be accepted. It may block. `hosts` are host names to
    allow in addition to loopback. `routes` are the protected routes. If `principals` is None, every
    request to a protected route is refused."""

    checks = CapacityLimiter(CHECKS_AT_ONCE)

    async def ready(request: Request) -> Response:
        found = await to_thread.run_sync(problems, limiter=checks)
        return JSONResponse({"ready": not found, "problems": list(found)}, 503 if found else 200)

    async def health(request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            status = error.status_code
        else:
            status = 500
        if isinstance(error, HTTPException):
            headers = dict(error.headers or {})
        else:
            headers = {}
        if status == 405:
            headers["Allow"] = ", ".join(methods_at(request))
        said = {
            404: "There is nothing at this address",
            405: "This address does not allow that method",
        }
        sentence = said.get(status, "Something went wrong in perdure; see its log")
        if request.url.path.startswith(OWN_CHECKS):
            return answer(status, sentence, headers)
        return problem(Problem(status, sentence, headers=headers))

    async def told(request: Request, error: Exception) -> Response:
        assert isinstance(error, PerdureError)
        return problem(error)

    return Starlette(
        routes=[
            Route("/webhooks/{name}", desk.post, methods=["POST"]),
            Route("/healthz", health, methods=["GET"]),
            Route("/readyz", ready, methods=["GET"]),
            *routes,
        ],
        middleware=[
            Middleware(Forwarded, proxies=proxies or Proxies()),
            Middleware(KnownHost, hosts=hosts),
            Middleware(Guard, principals=principals),
        ],
        exception_handlers={HTTPException: refused, PerdureError: told, Exception: refused},
    )


def methods_at(request: Request) -> list[str]:
    """Return all methods that are allowed at the address of a request. Several routes may share an
    address, and each knows only its own methods."""
    found: set[str] = set()
    for route in request.app.routes:
        if (
            isinstance(route, Route)
            and route.methods
            and route.matches(request.scope)[0] is not Match.NONE
        ):
            found |= route.methods
    return sorted(found)


class KnownHost:
    """Answers 421 to a request for an unknown host name, and adds the common headers to every
    answer."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self.names = {name.lower() for name in (*LOOPBACK, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        hosts = []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None or found[1].lower() not in self.names:
            sentence = "unknown host name: add it to hosts of [serve] (the setting serve_hosts)"
            await answer(421, sentence)(scope, receive, send)
            return

        async def sending(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                assert isinstance(headers, list)
                headers.append((b"x-content-type-options", b"nosniff"))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        await self.app(scope, receive, sending)  # type: ignore[arg-type]


def metrics(parts: Parts) -> Route:
    """Return the route `GET /metrics`. Its endpoint reads from the store through the read-only
    connection."""
    meter = MetricsPage(replace(parts.engine, store=parts.store), version("perdure"))

    async def scrape(request: Request) -> Response:
        authenticated(request)
        text, content_type = await run_in_threadpool(
            meter.exposition, request.headers.get("accept", "")
        )
        return Response(text, headers={"content-type": content_type})

    return Route("/metrics", scrape, methods=["GET"])


def routes(parts: Parts) -> list[BaseRoute]:
    """Return the routes of the API, the dashboard and the metrics. `application` protects them."""
    return [*api(parts), metrics(parts), *dashboard.routes(parts)]
