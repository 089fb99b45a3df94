"""Makes the routes of the API from the tables of verbs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from perdure.server.api import admin, audit, conversations, identity, lists, requests, runs
from perdure.server.api.events import stream
from perdure.server.api.openapi import document
from perdure.server.api.verbs import PREFIX, ApiContext, Verb, endpoint
from perdure.server.context import Parts
from perdure.server.limits import Reach
from perdure.server.principal import authenticated

VERBS: tuple[Verb, ...] = (
    *runs.VERBS,
    *requests.VERBS,
    *conversations.VERBS,
    *lists.VERBS,
    *admin.VERBS,
    *audit.VERBS,
    *identity.VERBS,
)


def api(parts: Parts) -> list[BaseRoute]:
    """Return all routes below `/api/v1`."""
    room = ApiContext()
    text = document(VERBS)

    async def openapi(request: Request) -> Response:
        authenticated(request, reach=Reach.NOTHING)
        return Response(text, media_type="application/json")

    routes: list[BaseRoute] = [
        Route(f"{PREFIX}/openapi.json", openapi, methods=["GET"]),
        Route(f"{PREFIX}/events", stream(parts, room), methods=["GET"]),
        Route(f"{PREFIX}/runs/{{run}}/events", stream(parts, room), methods=["GET"]),
    ]
    for verb in VERBS:
        does = endpoint(verb, parts, room)
        routes.append(Route(f"{PREFIX}{verb.path}", does, methods=[verb.method]))
    return routes
