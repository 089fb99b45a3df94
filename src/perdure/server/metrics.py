"""The route `GET /metrics` for Prometheus. It needs a token with the scope `read` and without
limits."""

from __future__ import annotations

from importlib.metadata import version

from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from perdure.server.context import Parts
from perdure.server.principal import authenticated
from perdure.telemetry.metrics.exposition import MetricsPage


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
