"""What an address of the API is, and how a request to it is answered: who asks, what is asked, done
in a thread, said as JSON.

A body is JSON read as strictly as a forge's: no key twice, no NaN, not nested without end. What
does not fit is 400 with the place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from typing import Any

import msgspec
from anyio import CapacityLimiter, to_thread
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from perdure.forge.webhooks.payload import object_of
from perdure.lateclass import dataclass
from perdure.model import TokenScope
from perdure.model.codec import resolved
from perdure.server.api.forms import Query
from perdure.server.context import Parts
from perdure.server.principal import Principal, authenticated
from perdure.server.problems import Problem

BODY_MOST = 4 * 1024 * 1024
BODY_S = 30.0
AT_ONCE = 16
"""So many verbs are done at once; the others wait."""
WALKS_AT_ONCE = 1
"""So many of those that look through all of the disk; who waits for one holds up no other verb."""
PREFIX = "/api/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall:
    """A request that fits its verb. `at`: the parts of the address."""

    who: Principal
    at: Mapping[str, str]
    query: Any
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """An answer that is no JSON: bytes that somebody else wrote. A browser stores it, and never
    shows it as a page."""

    content: bytes
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One method of one address. `does` waits for the store, git and the disk; it runs in a
    thread."""

    method: str
    path: str
    says: str
    """One sentence for the document."""
    does: Callable[[Parts, ApiCall], Any]
    answer: str = "object"
    """The name of its shape (see `shapes`), or `text`."""
    scope: TokenScope = TokenScope.READ
    query: type[msgspec.Struct] = Query
    body: type[msgspec.Struct] | None = None
    status: int = 200
    walks: bool = False
    """Whether it looks through all of the disk."""

    @property
    def id(self) -> str:
        """Its name in the document: `get_runs_run_diff`."""
        return (
            f"{self.method}{self.path}".lower()
            .replace("/", "_")
            .translate({ord(each): None for each in "{}"})
        )


@dataclass
class ApiContext:
    """The places in which verbs are done."""

    _limiter: CapacityLimiter | None = field(default=None, init=False)
    _walks: CapacityLimiter | None = field(default=None, init=False)

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
    """What Starlette calls."""

    async def answered(request: Request) -> Response:
        who = authenticated(request, verb.scope)
        at = {name: _part(value) for name, value in request.path_params.items()}
        query = _converted(
            _plain(request.query_params, verb.query), verb.query, "query", strict=False
        )
        body = (
            _converted(await _object(request), verb.body, "body") if verb.body is not None else None
        )
        found = await to_thread.run_sync(
            verb.does, parts, ApiCall(who=who, at=at, query=query, body=body), limiter=room.of(verb)
        )
        return said(found, verb.status)

    return answered


def said(found: Any, status: int = 200) -> Response:
    """The answer: JSON with a version, or bytes to be stored."""
    if isinstance(found, Raw):
        headers = {"content-disposition": f'attachment; filename="{found.name}"'}
        return Response(found.content, status, headers, "text/plain; charset=utf-8")
    return Response(_json({"schema_version": 1, **found}), status, media_type="application/json")


def _json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # A file's name that is no text.
        return json.dumps(value, ensure_ascii=True).encode()


def _part(value: str) -> str:
    if not value.isprintable() or len(value) > 1000:
        raise Problem(400, "The address holds what is in no name")
    return value


def _plain(given: QueryParams, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The query as an object: what may be there several times as a list."""
    several = {each.name for each in msgspec.structs.fields(kind) if each.default == ()}
    found: dict[str, Any] = {}
    for name, value in given.multi_items():
        if name in several:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise Problem(400, f"The query names {name!r} twice")
        else:
            found[name] = value
    return found


def _converted(
    value: Mapping[str, Any], kind: type[msgspec.Struct], where: str, *, strict: bool = True
) -> Any:
    try:
        return msgspec.convert(value, resolved(kind), strict=strict)
    except msgspec.ValidationError as error:
        raise Problem(
            400, f"The {where} does not fit: {error}", f"GET {PREFIX}/openapi.json says what does"
        ) from None


async def _object(request: Request) -> Mapping[str, Any]:
    """The JSON object in the body; nothing is an empty one. Raises Problem with 400, 408, 413 or
    415."""
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
        raise Problem(400, f"The body is no JSON object: {error}") from None


async def body_of(request: Request, most: int = BODY_MOST) -> bytes:
    """The raw body. Raises Problem with 408 or 413."""
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
        raise Problem(400, "The body did not come to its end") from None
    return bytes(body)
