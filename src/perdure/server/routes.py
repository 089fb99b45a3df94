"""Lists the routes of `perdure serve` that need authentication, which are all but webhooks and
health checks."""

from __future__ import annotations

from starlette.routing import BaseRoute

from perdure.server import dashboard
from perdure.server.api.routes import api
from perdure.server.context import Parts
from perdure.server.metrics import metrics


def routes(parts: Parts) -> list[BaseRoute]:
    """Return the routes of the API, the dashboard and the metrics."""
    return [*api(parts), metrics(parts), *dashboard.routes(parts)]
