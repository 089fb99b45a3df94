"""Defines `Verb`, one HTTP method at one path of the API, and answers the requests to verbs. A
request is authenticated and validated. The verb's function then does the work in a thread, and its
result is returned as JSON.

A body is JSON. It is parsed as strictly as that of a webhook: no duplicate keys, no NaN, limited
nesting. An invalid value is answered with 400 and the path of the field.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from anyio import CapacityLimiter, to_thread
from msgspec import Struct
from msgspec.structs import replace
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from perdure.forge.webhooks.payload import object_of
from perdure.host.actors import acting
from perdure.model import TokenScope
from perdure.model.codec import builtins, resolved
from perdure.model.reports import Answer
from perdure.server.api.forms import Query
from perdure.server.context import Parts
from perdure.server.limits import Reach, store_of
from perdure.server.principal import Principal, authenticated
from perdure.server.problems import Problem

BODY_MOST = 4 * 1024 * 1024
BODY_S = 30.0
AT_ONCE = 16
"""Maximum number of requests in progress at the same time. Further requests wait."""
WALKS_AT_ONCE = 1
"""Maximum number of requests that search the whole disk at the same time. They do not count toward
`AT_ONCE`."""
PREFIX = "/api/v1"
Row = TypeVar("Row")


class ApiCall(Struct, frozen=True, kw_only=True):
    """A validated request. `who` is the client. `at` contains the parameters of the path, by
    name."""

    who: Principal
    at: Mapping[str, str]
    query: Any
    body: Any


def page_of(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], Row | None]:
    """Return the rows of one page, and its last row if another page follows (otherwise None). The
    caller must have read `limit + 1` rows, because the additional row shows that another page
    follows."""
    shown = rows[:limit]
    if len(rows) > len(shown):
        return shown, shown[-1]
    return shown, None


class Raw(Struct, frozen=True, kw_only=True):
    """An answer that is not JSON but unchecked bytes, such as an agent's output. A browser saves it
    as a file and never displays it as a page."""

    content: bytes
    name: str


VerbResult = Answer | Raw | Mapping[str, object]
"""The result of a verb. A mapping contains the fields of an answer except `schema_version`, which
`response_of` adds."""


class Verb(Struct, frozen=True, kw_only=True):
    """One HTTP method at one path of the API. `does` carries out the request. It runs in a thread,
    so it may wait for the store, git and the disk."""

    method: str
    path: str
    says: str
    """Description for the OpenAPI document, in one sentence."""
    does: Callable[[Parts, ApiCall], VerbResult]
    answer: str = "object"
    """Name in the OpenAPI document of the class that describes the answer (see `shapes.named`), or
    `text` if the answer is not JSON."""
    scope: TokenScope = TokenScope.READ
    query: type[msgspec.Struct] = Query
    body: type[msgspec.Struct] | None = None
    status: int = 200
    walks: bool = False
    """Whether the verb searches the whole disk. Such requests are limited by `WALKS_AT_ONCE`."""
    reach: Reach | None = None
    """How the verb enforces the repository and label limits of a token. None means the default for
    its path (`Reach.of`)."""

    @property
    def within(self) -> Reach:
        """Return how the verb enforces the limits of a token: `reach`, or the default for its
        path."""
        return self.reach or Reach.of(self.path)

    @property
    def id(self) -> str:
        """Return the verb's id in the OpenAPI document, such as `get_runs_run_diff`."""
        return (
            f"{self.method}{self.path}".lower()
            .replace("/", "_")
            .translate({ord(each): None for each in "{}"})
        )


class ApiContext(Struct):
    """Limits the number of API requests in progress at the same time."""

    _limiter: CapacityLimiter | None = None
    _walks: CapacityLimiter | None = None

    @property
    def limiter(self) -> CapacityLimiter:
        self._limiter = self._limiter or CapacityLimiter(AT_ONCE)
        return self._limiter

    def of(self, verb: Verb) -> CapacityLimiter:
        if not verb.walks:
            return self.limiter
        self._walks = self._walks or CapacityLimiter(WALKS_AT_ONCE)
        return self._walks


def endpoint(
    verb: Verb, parts: Parts, room: ApiContext
) -> Callable[[Request], Awaitable[Response]]:
    """Return the Starlette endpoint of a verb."""

    async def answered(request: Request) -> Response:
        who = authenticated(request, verb.scope, verb.within)
        at = {name: _part(value) for name, value in request.path_params.items()}
        query = _converted(
            _plain(request.query_params, verb.query), verb.query, "query", strict=False
        )
        if verb.body is not None:
            body = _converted(await _object(request), verb.body, "body")
        else:
            body = None
        found = await to_thread.run_sync(
            _done, verb, parts, ApiCall(who=who, at=at, query=query, body=body),
            limiter=room.of(verb),
        )  # fmt: skip
        return response_of(found, verb.status)

    return answered


def _done(verb: Verb, parts: Parts, asked: ApiCall) -> VerbResult:
    """Carry out a request and return its result. The client is recorded as the actor, and the store
    is limited to the runs that the client may see."""
    with acting(asked.who.actor):
        if asked.who.limits:
            parts = replace(parts, store=store_of(parts.store, asked.who.limits))
            if verb.within is Reach.RUN:
                asked = replace(asked, at={**asked.at, "run": parts.store.get(asked.at["run"]).id})
        return verb.does(parts, asked)


def response_of(found: VerbResult, status: int = 200) -> Response:
    """Return the HTTP answer for a result: JSON with a schema version, or a `Raw` result as a file
    to save."""
    if isinstance(found, Raw):
        headers = {"content-disposition": f'attachment; filename="{found.name}"'}
        return Response(found.content, status, headers, "text/plain; charset=utf-8")
    if isinstance(found, Mapping):
        found = {"schema_version": 1, **found}
    return Response(_json(found), status, media_type="application/json")


def _json(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # msgspec cannot encode a file name that is not valid Unicode.
        return json.dumps(builtins(value), ensure_ascii=True).encode()


def _part(value: str) -> str:
    if not value.isprintable() or len(value) > 1000:
        raise Problem(400, "The address has characters that no name has")
    return value


def _plain(given: QueryParams, kind: type[msgspec.Struct]) -> Mapping[str, object]:
    """Return the query's parameters as a dict. Repeatable parameters become lists. Raises Problem
    for any other parameter that is given twice."""
    several = set()
    for each in msgspec.structs.fields(kind):
        if each.default == ():
            several.add(each.name)
    found: dict[str, str | list[str]] = {}
    for name, value in given.multi_items():
        if name not in found:
            found[name] = given.getlist(name) if name in several else value
        elif name not in several:
            raise Problem(400, f"The query names {name!r} twice")
    return found


def _converted(
    value: Mapping[str, object], kind: type[msgspec.Struct], where: str, *, strict: bool = True
) -> Any:
    try:
        return msgspec.convert(value, resolved(kind), strict=strict)
    except msgspec.ValidationError as error:
        raise Problem(
            400,
            f"The {where} is invalid: {error}",
            f"GET {PREFIX}/openapi.json describes the requests",
        ) from None


async def _object(request: Request) -> Mapping[str, object]:
    """Return the JSON object in the body; an empty object for an empty body. Raises Problem with
    400, 408, 413 or 415."""
    body = await body_of(request)
    if not body:
        return {}
    if (
        request.headers.get("content-type", "").partition(";")[0].strip().lower()
        != "application/json"
    ):
        raise Problem(415, "The body has to be application/json")
    try:
        return object_of(body)
    except ValueError as error:
        raise Problem(400, f"The body is not a JSON object: {error}") from None


async def body_of(request: Request, most: int = BODY_MOST) -> bytes:
    """Return the raw body. Raises Problem with 408 if it takes too long, 413 if it is longer than
    `most` bytes, and 400 if it is incomplete."""
    length = request.headers.get("content-length", "")
    too_large = Problem(413, f"The body has more than {most:,} bytes")
    if length.isdecimal() and int(length[:12]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Problem(408, f"The body took longer than {BODY_S:.0f} s") from None
    except ClientDisconnect:
        raise Problem(400, "The body is incomplete") from None
    return bytes(body)
