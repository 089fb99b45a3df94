"""What `perdure serve` has besides webhooks and health: everything here is behind `guard`."""

from __future__ import annotations

from starlette.routing import BaseRoute

from perdure.web import dashboard
from perdure.web.api.routes import api
from perdure.web.metrics import metrics
from perdure.web.parts import Parts


def routes(parts: Parts) -> list[BaseRoute]:
    """The addresses of the API, the dashboard and the metrics."""
    return [*api(parts), metrics(parts), *dashboard.routes(parts)]
